"""Talking with a model: whole turns in the template it was tuned on, streamed, with a history and stop rules."""

from dataclasses import dataclass, field

from minillama.config_checks import number
from minillama.generate import generate_text
from minillama.sampling import Sampling
from minillama.system.terminal import one_line
from minillama.train.chat_template import end_of_answer, template_for, template_function
from minillama.train.sequence_loss import encode_segments

# Texts with which a model that was tuned on little begins the other side's turn itself: they end an answer too.
STOP_TEXTS = {"question_answer": ("\nQuestion:",), "alpaca": ("\n### Instruction:",), "vicuna": ("USER:",),
              "llama2": ("[INST]",)}
# Templates of one exchange: a model tuned on them has never seen a second one, so each question is asked alone.
SINGLE = ("question_answer", "alpaca")
HELP = "/reset forgets the conversation, /system TEXT sets the system text, /history shows it all, /exit ends."


@dataclass(frozen=True)
class ChatSampling(Sampling):
    """Sampling for talk: sure of itself, but not the same words each time."""

    temperature: float = number(0.7, 1e-6, 1e6, or_zero=True)


@dataclass
class Conversation:
    """What was said so far, and the tokens that make a model say the next thing.

    The prompt is made anew from the messages in every turn: token for token the beginning of a training example of
    the same messages, of the last question alone for the templates in `SINGLE`. A new system text begins a new
    conversation.
    """

    tokenizer: object
    template: str | None = None  # a name as `chat_template.template_function` takes it; None: the model's own
    messages: list = field(default_factory=list)  # {"role", "content"}: maybe system, then user and assistant in turn
    forgotten: int = 0  # exchanges that no longer fitted into the model's context

    def __post_init__(self):
        self.template = self.template or template_for(self.tokenizer) or "question_answer"
        self.segments = template_function(self.template, self.tokenizer)

    def reset(self):
        """Forget all but the system text."""
        self.messages = [message for message in self.messages if message["role"] == "system"]

    def set_system(self, text):
        """Begin anew under another system text, none if it is blank; ValueError where the template has no place."""
        messages = [{"role": "system", "content": text}] if text.strip() else []
        self.segments([*messages, {"role": "user", "content": "?"}])
        self.messages = messages

    def ask(self, text):
        """Add the user's words; ValueError, and nothing added, where the template refuses them."""
        messages = [*self.messages, {"role": "user", "content": text}]
        encode_segments(self.segments(messages), self.tokenizer)
        self.messages = messages

    def answered(self, text):
        """Add what the model said to the last question."""
        self.messages.append({"role": "assistant", "content": text.strip()})

    def take_back(self):
        """Forget a question that got no answer."""
        if self.messages and self.messages[-1]["role"] == "user":
            self.messages.pop()

    def prompt(self, longest):
        """The ids up to where the answer begins, at most `longest`; the oldest exchanges are forgotten to fit, and
        counted. ValueError if the last question alone is too long."""
        while True:
            messages = self.messages[-1:] if self.template in SINGLE else self.messages
            ids = encode_segments(self.segments(messages), self.tokenizer).tokens
            if len(ids) <= longest:
                return ids
            first = int(self.messages[0]["role"] == "system")
            if len(messages) - first < 3:
                raise ValueError(f"the question makes {len(ids)} tokens with its template and {longest} have room "
                                 "before the answer: shorten it")
            del self.messages[first:first + 2]
            self.forgotten += 1

    def stop_ids(self):
        """Ids that end an answer."""
        return self.tokenizer.end_ids | {end_of_answer(self.template, self.tokenizer)} - {None}

    def stop_texts(self):
        """Texts that end an answer and are not shown."""
        return STOP_TEXTS.get(self.template, ())


def reply(model, conversation, max_new_tokens=256, sampling=ChatSampling(), seed=0):
    """Yield the answer to the last question in pieces of text as it is made; once it ends, or is broken off, what
    was said joins the conversation."""
    context = model.config.max_seq_len
    ids = conversation.prompt(context - min(max_new_tokens, context // 2))  # half the context may be answer
    pieces, told = generate_text(model, conversation.tokenizer, ids, max_new_tokens, sampling,
                                 conversation.stop_texts(), seed, conversation.stop_ids()), ""
    try:
        for piece in pieces:
            piece = piece if told else piece.lstrip()  # the space between prompt and answer
            told += piece
            if piece:
                yield piece
    finally:
        conversation.answered(told) if told.strip() else conversation.take_back()


def chat(model, conversation, lines, show, max_new_tokens=256, sampling=ChatSampling(), seed=0):
    """Answer `lines` (an iterable of the user's lines) until they end or /exit; `show(text)` writes.

    A line that begins with / is a command (`HELP`); a bad one, and a question that does not fit, is told in one line
    and the talk goes on. KeyboardInterrupt during an answer keeps what was said and asks for the next line.
    """
    for turn, line in enumerate(map(str.strip, lines)):
        if line == "/exit":
            return
        if not line:
            continue
        try:
            if line.startswith("/"):
                show(command(conversation, line) + "\n")
                continue
            conversation.ask(line)
            before = conversation.forgotten
            try:
                for piece in reply(model, conversation, max_new_tokens, sampling, seed + turn):
                    show(piece)
            except KeyboardInterrupt:
                show(" ...")
            show("\n")
            if conversation.forgotten > before:
                show(f"({conversation.forgotten - before} of the oldest exchanges forgotten: the context is full)\n")
        except ValueError as error:
            conversation.take_back()
            show(f"({one_line(error)})\n")


def command(conversation, line):
    """Obey a line that begins with / -> what to tell; ValueError for one that is not known."""
    name, _, rest = line.partition(" ")
    if name == "/reset":
        conversation.reset()
        return "(forgotten)"
    if name == "/system":
        conversation.set_system(rest.strip())
        return "(a new conversation under this system text)" if rest.strip() else "(no system text)"
    if name == "/history":
        return "\n".join(f"{message['role']}: {message['content']}" for message in conversation.messages) or "(nothing)"
    if name == "/help":
        return HELP
    raise ValueError(f"{name} is no command: {HELP}")
