"""Prompts as the published models were trained on them, cut into segments that say which part is to be learned.

Every template returns a list of `Segment`; `text_of` joins them to the published text. The assistant's words and the
token that ends them are learned, all else is context. A space before the assistant's first word belongs to the
assistant: LLaMA's tokenizer writes it as part of the word (`▁Yes`), so a prompt that kept it would end in a piece that
never stands there in training.

Without an answer (output None, or a last message from the user) the list ends where the assistant's
turn begins: the prompt for generation, token for token the beginning of the training example.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Segment:
    """A run of text, or one control token.

    control: `text` names a token of the tokenizer: "<s>" and "</s>" stand for its begin and end of
    sequence, however it spells them; other names are looked up among its special tokens. Only control
    segments ever become such tokens; the same letters typed by a user stay letters.
    alone: encoded apart from its neighbours, where the publisher's program did so.
    """

    text: str
    learn: bool = False
    control: bool = False
    alone: bool = False


BOS = Segment("<s>", control=True)
EOS = Segment("</s>", learn=True, control=True)  # learned: it is how the model learns to stop

ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n")
ALPACA_WITHOUT_INPUT = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n")
VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions.")
LLAMA2_TAGS = ("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>")


def text_of(segments):
    """The segments as one text, control tokens written out."""
    return "".join(segment.text for segment in segments)


def alpaca(instruction, input="", output=None):
    """Stanford Alpaca's two templates, with and without an input (tatsu-lab/stanford_alpaca, README).

    The README ends the prompt with a newline after "### Response:", as we do; its training program left it out.
    """
    template = ALPACA_WITH_INPUT if input else ALPACA_WITHOUT_INPUT
    before, after = template.split("{instruction}")  # not str.format: braces in the user's text are text
    return _with_answer([BOS, Segment(before + instruction + after.replace("{input}", input))], output)


def question_answer(question, answer=None):
    """StackLLaMA's template, the same in fine-tuning, reward model and reinforcement learning."""
    prompt = Segment(f"Question: {question}\n\nAnswer:")
    return _with_answer([BOS, prompt], None if answer is None else " " + answer)


def vicuna(messages):
    """Vicuna v1.1 (lm-sys/FastChat): system text, then `USER: ... ASSISTANT: ...</s>` for each exchange.

    messages: [{"role": "system" | "user" | "assistant", "content": str}, ...]; a system message,
    allowed only first, replaces the published one.
    """
    system, exchanges = _exchanges(messages)
    segments = [BOS, Segment((VICUNA_SYSTEM if system is None else system) + " ")]
    for question, answer in exchanges:
        answer = None if answer is None else " " + answer
        segments = _with_answer([*segments, Segment(f"USER: {question} ASSISTANT:")], answer)
    return segments


def llama2_chat(messages):
    """Llama 2 chat (meta-llama/llama, generation.py): `<s>[INST] ... [/INST] ... </s>` for each exchange, the system
    text between <<SYS>> marks inside the first; contents stripped, as Meta does. messages as in `vicuna`.

    The marks are plain text to the tokenizer, so a message that holds one could pose as another role: ValueError.
    """
    system, exchanges = _exchanges(messages)
    for message in messages:
        for tag in LLAMA2_TAGS:
            if tag in message["content"]:
                raise ValueError(f"a {message['role']} message holds {tag}, a mark of Llama 2's template: "
                                 "take it out, or use a template whose marks are control tokens (llama3_chat)")
    segments = []
    for question, answer in exchanges:
        if system is not None:
            question, system = f"<<SYS>>\n{system}\n<</SYS>>\n\n{question}", None
        answer = None if answer is None else f" {answer.strip()} "
        segments = _with_answer([*segments, BOS, Segment(f"[INST] {question.strip()} [/INST]")], answer)
    return segments


def llama3_chat(messages):
    """Llama 3 chat (meta-llama/llama-models, ChatFormat): a header of control tokens naming the role, two newlines, the
    content, <|eot_id|>. messages as in `vicuna`. The newlines are encoded apart from the content, as Meta does: a
    content that begins with a newline would otherwise merge into them."""
    _exchanges(messages)
    segments = [Segment("<|begin_of_text|>", control=True)]
    for message in messages:
        learn = message["role"] == "assistant"
        segments += [*_header(message["role"]), Segment(message["content"], learn),
                     Segment("<|eot_id|>", learn, control=True)]
    return segments if messages[-1]["role"] == "assistant" else segments + _header("assistant")


def chatml(messages):
    """ChatML (openai/openai-python, chatml.md): `<|im_start|>role`, newline, the content, `<|im_end|>`, newline; no
    <s>. messages as in `vicuna`.
    """
    _exchanges(messages)
    segments = []
    for message in messages:
        learn = message["role"] == "assistant"
        segments += [Segment("<|im_start|>", control=True), Segment(message["role"] + "\n"),
                     Segment(message["content"], learn), Segment("<|im_end|>", learn, control=True), Segment("\n")]
    if messages[-1]["role"] == "user":
        segments += [Segment("<|im_start|>", control=True), Segment("assistant\n")]
    return segments


def repeat_template(template):
    """A template of one question and one answer as one for conversations: every exchange stands whole, <s> and </s>
    included, behind the one before it, as Llama 2 does it. Such a template has no place for a system text."""
    def repeated(messages):
        system, exchanges = _exchanges(messages)
        if system is not None:
            raise ValueError("this template has no place for a system text: use vicuna, llama2, llama3 or chatml")
        return [segment for question, answer in exchanges for segment in template(question, answer)]

    return repeated


def _header(role):
    return [Segment("<|start_header_id|>", control=True), Segment(role),
            Segment("<|end_header_id|>", control=True), Segment("\n\n", alone=True)]


def _with_answer(segments, answer):
    """The prompt with its answer to be learned and EOS; without an answer the prompt alone."""
    return segments if answer is None else [*segments, Segment(answer, learn=True), EOS]


def _exchanges(messages):
    """(system text or None, [(question, answer), ...]); only the last answer may be None."""
    roles = [message["role"] for message in messages]
    rest = messages[1:] if roles[:1] == ["system"] else messages
    wanted = ["user", "assistant"] * len(rest)
    if not rest or [message["role"] for message in rest] != wanted[:len(rest)]:
        raise ValueError(f"roles {roles}: expected maybe system, then user and assistant in turn")
    contents = [message["content"] for message in rest] + [None] * (len(rest) % 2)
    system = messages[0]["content"] if len(rest) < len(messages) else None
    return system, list(zip(contents[::2], contents[1::2], strict=True))


# By name; each takes messages, as `vicuna` does.
TEMPLATES = {"question_answer": repeat_template(question_answer),
             "alpaca": repeat_template(lambda question, answer: alpaca(question, output=answer)),
             "vicuna": vicuna, "llama2": llama2_chat, "llama3": llama3_chat, "chatml": chatml}
