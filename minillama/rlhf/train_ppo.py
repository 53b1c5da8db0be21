"""PPO on a language model: sample answers, score them, learn from them, and stay near where it began.

One iteration, after InstructGPT (arXiv 2203.02155, section 3.5) and the program of 1909.08593:

    answers      sampled from the policy, one to each question                     rollout.sample_answers
    score        the reward model's, a low one where the answer was cut off        ppo.punish_missing_eos
    rewards      -beta (log pi - log pi_ref) at each token, the score at EOS       ppo.token_rewards
    advantages   GAE of rewards and values, whitened                               gae.gae, ppo.whiten
    learning     a few epochs of the clipped policy and value losses               ppo.policy_loss, value_loss
    KL penalty   beta grows while the KL is above its target, and shrinks below    ppo.next_kl_coefficient
"""

import time
from dataclasses import dataclass, replace
from functools import partial

import torch

from minillama.config_checks import MOST, check_config, choice, number, seed
from minillama.evaluate.diagnosis import describe, tell_news
from minillama.evaluate.exam import means
from minillama.rlhf import ppo
from minillama.rlhf.best_policy import BestPolicy
from minillama.rlhf.experience import judged_places, make_experience, value_model_of
from minillama.rlhf.model_calls import ModelCalls
from minillama.rlhf.pretraining_mix import pretraining_loss
from minillama.rlhf.reference import Reference
from minillama.rlhf.rollout import choose_questions, prompts_of
from minillama.rlhf.trust_region import LastBatch, is_far, pull_back
from minillama.train.optimizer import AdamW
from minillama.train.resumable import ResumableRun
from minillama.train.resume import crc_of_texts, settings_of
from minillama.train.templates import question_answer
from minillama.train.training_run import train_step

RATIO_TOLERANCE = 1e-2  # of the first ratios; dropout, another temperature or a wrong place is far above it
STATE_FILE = "ppo_state.pt"


@dataclass(frozen=True)
class PPOConfig:
    """What decides a run, besides models and questions; the defaults are those of 1909.08593's program where no other
    source is named, except kl_coefficient, kl_target and kl_horizon: a run of minutes has a tenth of its answers. Those
    behind the seed are the choices in which published programs differ, the columns of the table in `ppo`."""

    iterations: int = number(30, 1, MOST)  # rounds of sampling and learning
    batch_size: int = number(64, 1, MOST)  # answers of a round
    answers: int | None = number(None, 1, MOST)  # of them to each question; None: as the `learner` wants
    max_new_tokens: int = number(64, 1, MOST)  # an answer without EOS by then is cut off
    temperature: float = number(1.0, 1e-3, 1e3)  # of sampling and of scoring alike
    epochs: int = number(4, 1, 1000)  # times that each batch is learned
    minibatches: int = number(1, 1, MOST)  # updates of an epoch
    lr: float | None = number(None, 1e-12, 10)  # of the policy, falling in a straight line to 0; None: `with_rates`
    value_lr: float | None = number(None, 1e-12, 10)  # of the value model, likewise; None: three times lr
    adam_eps: float = number(1e-5, 1e-30, 1)  # 1e-8 would take large steps where gradients are tiny
    clip_norm: float = number(1.0, 1e-9, 1e9)  # largest norm of each model's gradients
    clip: float = number(0.2, 1e-6, 1e6)  # of the ratio
    value_clip: float = number(0.2, 1e-6, 1e6)  # of a value's change, in units of the score
    gamma: float = number(1.0, 0, 1)
    lam: float = number(0.95, 0, 1)
    old_kl: float = number(0.05, 1e-6, 1e6, or_zero=True)  # nats a token; a batch is left beyond 1.5 times; 0: never
    mean_ratio: float = number(10.0, 1, 1e12)  # beyond it likewise (TRL v1's ratio_threshold)
    kl_coefficient: float = number(0.15, 0, 1e6)  # beta at the start; 0: no KL penalty
    kl_target: float = number(3.0, 1e-6, 1e6, or_zero=True)  # nats of an answer, to which beta adapts; 0: it stays
    kl_horizon: float = number(300.0, 1, 1e12)  # answers in which beta may change by a fifth
    missing_eos_score: float = number(-1.0, -1e6, 1e6)  # instead of the reward model's
    pretraining_weight: float = number(0.0, 0, 1e6)  # of the loss on pretraining text; InstructGPT's gamma was 27.8
    checkpoint_every: int = number(10, 0, MOST)  # iterations; 0: only before the first and after the last
    seed: int = seed()
    score_at: str = choice("eos", *ppo.SCORE_PLACES.words)  # which token gets the score
    score_limit: float = number(0.0, 1e-6, 1e9, or_zero=True)  # scores are cut to +- it; 0: never
    estimator: str = choice("k1", *ppo.KL_ESTIMATORS.words)  # of the KL in the reward
    whitening: str = choice("biased", "none", "biased", "unbiased")  # of advantages, and with which variance
    whiten_rewards: bool = False  # before the advantages, their mean kept
    ratio_limit: float = number(0.0, 1, 1e12, or_zero=True)  # a cap on the ratio itself; 0: none
    average: str = choice("tokens", *ppo.AVERAGES.words)  # over what the policy's loss is a mean
    keep: str = choice("best", "best", "last")  # policy, where questions are held out

    def __post_init__(self):
        check_config(self)
        for name in ("minibatches", "answers"):
            if self.batch_size % (getattr(self, name) or 1):
                raise ValueError(f"batch_size {self.batch_size} is no multiple of {getattr(self, name)} {name}")
        if self.batch_size >= 5 * self.kl_horizon:  # beta changes by up to a fifth in so many answers: never below 0
            raise ValueError(f"kl_horizon {self.kl_horizon} is too short for batch_size {self.batch_size}: from "
                             f"{self.batch_size / 4:g} on")


def with_rates(config, D):
    """The config with its rates: where it has none, 0.064 / D for the policy, since Adam's best rate falls as the width
    grows (arXiv 2203.03466): 5e-4 at 128, and at LLaMA's 4096 the 1.6e-5 that published programs use."""
    lr = config.lr or 0.064 / D
    return replace(config, lr=lr, value_lr=config.value_lr or 3 * lr)


class PPO(ModelCalls):
    """A run in progress. The policy learns in place; its reference is what it was at the start.

    policy: a Transformer. What of it requires a gradient learns, all or an adapter, with tables or without, and only
    that is kept a second time (`reference.Reference`). score(tokens_BT, mask_BT) -> (B,): a `RewardModel`, or any rule.
    value: an `experience.ValueModel`; None for learners that guess none (`grpo`). Nothing drops out.
    """

    answers, guesses_values = 1, True  # to each question, unless told; whether there is a value model

    def __init__(self, policy, score, value, config):
        self.policy, self.score, self.value = policy.eval(), score, value and value.eval()
        self.config = config = with_rates(replace(config, answers=config.answers or self.answers), policy.config.dim)
        self.reference = Reference(policy)
        options = {"betas": (0.9, 0.999), "eps": config.adam_eps, "weight_decay": 0.0}
        self.policy_optimizer = AdamW(policy.parameters(), config.lr, **options)
        self.value_optimizer = value and AdamW(value.parameters(), config.value_lr, **options)
        self.kl_coefficient, self.iteration = config.kl_coefficient, 0
        self.origins = []  # weights before the batch's last step, and before its first
        self.last_batch = LastBatch(self.policy_optimizer, config)

    def advance(self, prompts, eos_id, other_loss=None):
        """One iteration over `prompts`, lists of ids -> (its rollout, metrics).

        other_loss(number of the update) -> scalar tensor is added to the policy's loss, such as `pretraining_loss`.
        """
        config, seed = self.config, self.config.seed * 1_000_003 + self.iteration
        experience, seen = self.last_batch.settle(lambda: self.make_experience(self.sample(prompts, eos_id, seed)),
                                                  lambda experience: self.agree(describe(experience)))
        rate = self.last_batch.rate * (1 - self.iteration / config.iterations)
        self.policy_optimizer.lr = rate * config.lr
        if self.value:
            self.value_optimizer.lr = rate * config.value_lr
        metrics = {"iteration": self.iteration, "kl_coefficient": self.kl_coefficient, **seen,
                   **self.learn(experience, seed, other_loss)}
        if self.kl_coefficient and config.kl_target:
            self.kl_coefficient = ppo.next_kl_coefficient(self.kl_coefficient, metrics["kl"], config.kl_target,
                                                          len(prompts), config.kl_horizon)
        self.iteration += 1
        return experience.rollout, metrics

    @torch.no_grad()
    def make_experience(self, rollout):
        """The answers' scores, log-probabilities, values and advantages: an `experience.Experience`."""
        score_B = ppo.punish_missing_eos(self.scores(rollout), rollout.ended_B, self.config.missing_eos_score)
        return self.add_advantages(rollout, score_B, self.log_probs(self.policy, rollout),
                                     self.reference_log_probs(rollout))

    def add_advantages(self, rollout, score_B, log_prob_BA, ref_log_prob_BA):
        """The experience, its advantages by GAE."""
        return make_experience(rollout, score_B, log_prob_BA, ref_log_prob_BA, self.values(rollout),
                               self.kl_coefficient, self.config)

    def learn(self, experience, seed, other_loss=None):
        """All epochs over one batch, or those until the policy is too far from the one that sampled; the last step is
        held within the `trust_region` -> means of what the updates measured, their number, "updates", and "halved",
        how often the last was; of the first alone: "entropy", and "first_ratio" (1, if nothing is wrong)."""
        self.origins = [self.last_batch.begin()]
        logits = partial(self.logits, experience.rollout)
        began_BAV = torch.no_grad()(logits)()
        generator, rows, measured = torch.Generator().manual_seed(seed), len(experience.score_B), []
        for chosen in (part for _ in range(self.config.epochs)
                       for part in torch.randperm(rows, generator=generator).chunk(self.config.minibatches)):
            whole = len(chosen) == rows  # in its own order: then the first ratio is 1 to the last bit
            number = self.iteration * self.config.epochs * self.config.minibatches + len(measured)
            row = self.update(experience if whole else experience.rows(chosen), other_loss and other_loss(number),
                              not measured)
            if row is None:
                break
            measured.append(row)
            if len(measured) == 1 and not abs(row["first_ratio"] - 1) < RATIO_TOLERANCE:
                raise FloatingPointError(f"a ratio is {row['first_ratio']} before the first update, not 1: does the "
                                         "policy drop out, or keep state between calls?")
        halved = pull_back(self.policy_optimizer, self.origins, lambda: is_far(
            self.measure(logits(), experience, began_BAV)[1], self.config))
        first = {name: measured[0][name] for name in ("entropy", "first_ratio")}
        first |= {"updates": len(measured), "halved": halved}
        return {name: sum(row[name] for row in measured) / len(measured) for name in measured[0]} | first

    def update(self, experience, other_loss=None, first=False):
        """One step of the policy, on its loss plus `other_loss`, and one of the value model -> what was measured before
        them. None, and no step, if the policy is too far from the one that sampled; the first step is always made."""
        config = self.config
        log_prob_BA, measured = self.measure(self.logits(experience.rollout), experience)
        if not first and is_far(measured, config):
            return None
        self.origins = [[weight.clone() for weight in self.policy_optimizer.weights], *self.origins[-1:]]
        loss = self.policy_loss(log_prob_BA, experience)
        step_optimizer(self.policy_optimizer, loss if other_loss is None else loss + other_loss, config.clip_norm)
        values = self.learn_values(experience)
        other = {} if other_loss is None else {"other_loss": other_loss.item()}
        return {**other, "policy_loss": loss.item(), **values, **measured}

    def policy_loss(self, log_prob_BA, experience):
        """The clipped loss."""
        return ppo.policy_loss(log_prob_BA, experience.log_prob_BA, experience.advantages_BA,
                               experience.rollout.answer_mask_BA, self.config.clip, self.config.ratio_limit or None,
                               self.config.average)

    def learn_values(self, experience):
        """One step of the value model -> {"value_loss": before it}."""
        mask_BA = judged_places(experience.rollout, self.config.score_at)
        loss = ppo.value_loss(self.values(experience.rollout), experience.values_BA, experience.returns_BA, mask_BA,
                              self.config.value_clip)
        step_optimizer(self.value_optimizer, loss, self.config.clip_norm)
        return {"value_loss": loss.item()}

    def state_dict(self):
        """All that a continued run needs, of models what learns: neither the frozen base nor the reference, which are
        what the run was given."""
        return {"iteration": self.iteration, "kl_coefficient": self.kl_coefficient,
                **{name: {key: p.detach() for key, p in part.named_parameters() if p.requires_grad}
                   if isinstance(part, torch.nn.Module) else part.state_dict() for name, part in self.parts().items()}}

    def load_state_dict(self, state):
        """Go on from a saved run, of whose form `state_dict` says."""
        self.iteration, self.kl_coefficient = state["iteration"], state["kl_coefficient"]
        for name, part in self.parts().items():
            part.load_state_dict(state[name], **{"strict": False} if isinstance(part, torch.nn.Module) else {})

    def parts(self):
        """{name: what learns, and its optimizer}."""
        names = ("policy", "policy_optimizer", "value", "value_optimizer", "last_batch")
        return {name: getattr(self, name) for name in names if getattr(self, name)}


def step_optimizer(optimizer, loss, clip_norm):
    """One step on a loss (scalar tensor); FloatingPointError where it is not finite, and nothing has changed."""
    if not torch.isfinite(loss):
        raise FloatingPointError(f"the loss is {loss.item()}: the last checkpoint is untouched; begin anew with a "
                                 f"lower rate than {optimizer.lr}")
    train_step(optimizer, [loss], clip_norm)


def train_ppo(policy, reward_model, tokenizer, questions, config=PPOConfig(), template=question_answer, watch=None,
              folder=None, resume=False, progress=True, pretraining_text=None, facts=None, end_id=None, asked=(),
              learner=PPO, kind=None):
    """Improve `policy` in place by the scores of `reward_model` -> history, the metrics of every iteration.

    template(question) gives the segments of the prompt; end_id (None: the tokenizer's eos) ends an answer. watch:
    {name: f(question, answer)}, numbers whose mean over every batch is reported under their name, never learned from.
    Metrics: those of `diagnosis.describe`, `PPO.learn`, "distinct" (share of the batch's answers that are unlike all
    before them), "seconds". What looks wrong in them is told on stderr once, with what to try (`diagnosis`).
    asked: questions that are none of `questions`; now and then "held_out_score" and "held_out_kl" of the
    answers to them are measured, and the policy ends as it was at its best by them (`best_policy`); (): as it ends.
    pretraining_text: `train.data.Tokens` of what the model was pretrained on, to be mixed in with
    `config.pretraining_weight`. learner: `PPO`, or another of `grpo.LEARNERS`; kind: of run, `PPORun` unless
    in shards (`sharded_ppo`). folder: where the run is kept; resume=True goes on from it, bit for bit, given the same
    policy as at the start. Of the settings `checkpoint_every` may differ then, and `iterations`: from where the run
    stands, the rates follow the line of the new number. facts: {name: plain value} of more that must be the same. A
    request to stop ends the iteration, saves and raises as in `pretrain`.
    """
    value = value_model_of(reward_model) if learner.guesses_values else None
    ppo_of_run = learner(policy, reward_model, value, config)
    run = (kind or PPORun)(ppo_of_run, tokenizer, questions, template, end_id, watch, pretraining_text, facts, folder,
                           asked)
    history = run.train(resume, progress)
    run.best.put_back()
    return history


class PPORun(ResumableRun):
    """A run of `ppo` in its folder: `ppo_state.pt`, and a line of metrics for each iteration."""

    name, total, unit, state_file, needs = "ppo", "iterations", "iteration", STATE_FILE, ("score", "kl")

    def __init__(self, learner, tokenizer, questions, template, end_id, watch, pretraining_text, facts, folder, asked):
        self.ppo, self.tokenizer, self.questions, self.watch, self.told = learner, tokenizer, questions, watch, set()
        self.prompts, exam = (prompts_of(part, tokenizer, template) for part in (questions, asked))
        self.end_id = tokenizer.eos_id if end_id is None else end_id  # it may be 0
        self.best = BestPolicy(learner, exam, self.end_id)
        self.other_loss = pretraining_loss(learner, pretraining_text)
        data = {"prompts": crc_of_texts(list(questions)), "prompt_tokens": crc_of_texts(self.prompts + exam),
                "pretraining_text": pretraining_text and pretraining_text.fingerprint()}
        signature = {**(facts or {}), **data, **settings_of(learner.config), **learner.facts(),
                     "algorithm": type(learner).__name__.lower()}
        super().__init__(learner.config, folder, signature, learner.config.iterations)

    def advance(self):
        """One iteration -> score and KL in words."""
        start, chosen = time.perf_counter(), choose_questions(len(self.prompts), self.step, self.config)
        began = {} if self.step else self.best.check_policy()
        rollout, metrics = self.ppo.advance([self.prompts[i] for i in chosen], self.end_id, self.other_loss)
        self.step = self.ppo.iteration
        texts = [text.strip() for text in rollout.texts(self.tokenizer)]
        metrics |= began | means(self.watch, [self.questions[i] for i in chosen], texts)
        self.record(metrics | self.best.check_policy() | {"distinct": len(set(texts)) / len(texts),
                               "seconds": round(time.perf_counter() - start, 3)})
        tell_news(self.history, self.config, self.told)
        return f"score {metrics['score']:+.2f}, KL {metrics['kl']:.1f}"

    def state_dict(self):
        return {**self.ppo.state_dict(), "best": self.best.state_dict()}

    def load_state_dict(self, state):
        self.ppo.load_state_dict(state)
        self.best.load_state_dict(state["best"])

    def rate_words(self, before):
        """What a new number of iterations makes of the learning rates."""
        last, now = max(0, 1 - (self.step - 1) / before), 1 - self.step / self.end
        return f"the learning rates go from {last:.0%} to {now:.0%} of --lr and --value-lr"
