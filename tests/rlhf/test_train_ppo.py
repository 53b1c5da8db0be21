"""Laws of the PPO loop: the policy that learns is the one that sampled, the reference never moves, seeds decide all."""

import copy

import pytest
import torch
from letters import Letters, bare
from mutants import Mutant
from torch.nn import functional as F

from minillama.config import ModelConfig
from minillama.peft.lora import LoRAConfig, add_lora, remove_lora
from minillama.rlhf.experience import value_model_of
from minillama.rlhf.reward_model import RewardModel
from minillama.rlhf.rollout import answer_logits, choose_questions, log_probs_of, sample_answers
from minillama.rlhf.train_ppo import PPO, PPOConfig, train_ppo
from minillama.transformer import Transformer

QUESTIONS = ["a?", "what is b?", "c", "dd", "who?"]
CONFIG = PPOConfig(iterations=4, batch_size=6, max_new_tokens=6, epochs=3, lr=1e-3, value_lr=3e-3,
                   kl_coefficient=0.05, kl_target=6.0, kl_horizon=60, checkpoint_every=2, seed=1)
A_LETTER = Letters.alphabet.index("a")


def a_model(lora=False, seed=0, vocab_size=Letters.vocab_size):
    torch.manual_seed(seed)
    model = Transformer(ModelConfig(16, 1, 2, vocab_size, hidden_dim=24, max_seq_len=32)).eval()
    if lora:
        add_lora(model, LoRAConfig(rank=4, alpha=16.0, targets=("attention.*", "feed_forward.*")))
    return model


def a_reward_model():
    return RewardModel(a_model(seed=5), 16).eval()


def share_of_a(tokens_BT, mask_BT):
    """A rule in a reward model's place."""
    return 4 * ((tokens_BT == A_LETTER) & mask_BT).float().sum(-1) / mask_BT.sum(-1)


def a_run(policy, score=None, **changes):
    reward_model = a_reward_model()
    config = PPOConfig(**{**{name: getattr(CONFIG, name) for name in CONFIG.__dataclass_fields__}, **changes})
    return PPO(policy, score or reward_model, value_model_of(reward_model), config)


def prompts(run, iteration):
    ids = [[1, *Letters().encode(question)] for question in QUESTIONS]
    return [ids[i] for i in choose_questions(len(ids), iteration, run.config)]


def walk(run, n=None):
    return [run.advance(prompts(run, i), Letters.eos_id)[1] for i in range(n or run.config.iterations)]


def trained(policy, config=CONFIG, **options):
    history = train_ppo(policy, a_reward_model(), Letters(), QUESTIONS, config, bare, progress=False, **options)
    return policy.state_dict(), [{k: v for k, v in row.items() if k != "seconds"} for row in history]


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("lora", [False, True])
def test_before_the_first_update_every_ratio_is_exactly_one(lora):
    assert [row["first_ratio"] for row in walk(a_run(a_model(lora)))] == [1.0] * 4


def test_in_minibatches_it_is_one_to_rounding():
    ratios = [row["first_ratio"] for row in walk(a_run(a_model(), minibatches=3))]
    assert all(abs(ratio - 1) < 1e-5 for ratio in ratios)  # other batch shapes, sums in another order


def test_a_policy_that_is_not_the_one_that_sampled_is_found_out():
    policy = a_model()
    policy.norm.register_forward_hook(lambda part, _, x: F.dropout(x, 0.3, True))
    with pytest.raises(FloatingPointError, match="before the first update, not 1"):
        walk(a_run(policy), 1)


def test_dropout_that_obeys_eval_is_off_in_the_whole_run():
    policy = a_model().train()
    policy.norm.register_forward_hook(lambda part, _, x: F.dropout(x, 0.3, part.training))
    assert walk(a_run(policy), 1)[0]["first_ratio"] == 1.0


@pytest.mark.parametrize("lora", [False, True])
def test_the_reference_is_the_policy_as_it_began(lora):
    policy = a_model(lora)
    rollout = sample_answers(policy, [[1, 3], [1, 4, 5]], 2, 6)
    with torch.no_grad():
        before = log_probs_of(answer_logits(policy, rollout), rollout)
    run = a_run(policy)
    walk(run)
    with torch.no_grad():
        assert torch.equal(run.reference_log_probs(rollout), before)
        assert not torch.allclose(run.log_probs(policy, rollout), before)


def test_with_lora_the_base_never_moves_and_there_is_no_second_copy():
    policy = a_model(lora=True)
    base = {name: p.clone() for name, p in policy.named_parameters() if not p.requires_grad}
    run = a_run(policy)
    walk(run)
    assert len(base) == 12 and len(run.reference.kept) == 2 * 7, "A and B of 7 layers"
    assert all(torch.equal(policy.get_parameter(name), p) for name, p in base.items())
    ids = torch.tensor([[1, 3, 4]])
    remove_lora(policy)
    with torch.no_grad():
        assert torch.equal(policy(ids), a_model()(ids)), "without its adapters it is the model it began as"


def test_the_reward_model_never_learns():
    reward_model = a_reward_model()
    before = copy.deepcopy(reward_model.state_dict())
    train_ppo(a_model(), reward_model, Letters(), QUESTIONS, CONFIG, bare, progress=False)
    assert same(before, reward_model.state_dict())
    assert all(p.grad is None for p in reward_model.parameters())


def test_the_first_gradient_is_that_of_the_policy_gradient_theorem():
    """At ratio 1 the clipped objective's gradient is mean(A grad log pi) (arXiv 1707.06347 eq. 1 and 6)."""
    run = a_run(a_model(), clip_norm=1e9, lr=1e-9)
    rollout = sample_answers(run.policy, prompts(run, 0), 2, 6)
    experience = run.make_experience(rollout)
    mask_BA = rollout.answer_mask_BA
    run.policy.zero_grad()
    log_prob_BA = log_probs_of(answer_logits(run.policy, rollout), rollout)
    (-(experience.advantages_BA * log_prob_BA)[mask_BA].mean()).backward()
    wanted = [p.grad.clone() for p in run.policy.parameters()]
    run.update(experience)
    for p, gradient in zip(run.policy.parameters(), wanted, strict=True):
        torch.testing.assert_close(p.grad, gradient, rtol=1e-4, atol=1e-7)


def practise(beta, lora=False):
    """24 rounds of learning to write a's, in a language of seven letters where answers often end."""
    run = a_run(a_model(lora, vocab_size=7), share_of_a, iterations=24, batch_size=32, lr=1e-2, value_lr=1e-2,
                kl_coefficient=beta, kl_target=0.0)
    return [run.advance([[1, 3 + i % 4] for i in range(32)], Letters.eos_id)[1] for _ in range(24)]


@pytest.mark.parametrize("lora", [False, True])
def test_it_learns_what_the_score_pays_for(lora):
    history = practise(0.01, lora)
    assert history[-1]["score"] > history[0]["score"] + 1.0 and history[0]["kl"] == 0.0 < history[-1]["kl"]
    assert history[-1]["ended"] > history[0]["ended"], "an answer that is cut off has the score -1"


def test_a_dear_kl_penalty_keeps_the_policy_at_home():
    far, near = (practise(beta)[-1]["kl"] for beta in (0.0, 2.0))
    assert far > 2.0 > 1.0 > near


def test_the_kl_penalty_adapts_to_the_target_by_the_published_rule():
    for target, factor in ((1e-6, 1 + 0.2 * 6 / 60), (1e6, 1 - 0.2 * 6 / 60)):  # 6 answers, horizon 60
        seen = [row["kl_coefficient"] for row in walk(a_run(a_model(), kl_target=target, lr=1e-2))]
        assert seen[:2] == pytest.approx([0.05, 0.05 * (1 - 0.2 * 6 / 60)]), "the first KL is 0, below any target"
        assert seen[3] / seen[2] == pytest.approx(factor)
    assert {row["kl_coefficient"] for row in walk(a_run(a_model(), kl_target=0.0))} == {0.05}
    assert {row["kl_coefficient"] for row in walk(a_run(a_model(), kl_coefficient=0.0))} == {0.0}


def test_an_answer_without_end_gets_the_fixed_score():
    policy, run = a_model(), None
    with torch.no_grad():
        policy.tok_embeddings.weight[2] = 0  # and the head's row: EOS is as likely as any other
    run = a_run(policy, lambda tokens_BT, mask_BT: torch.full((len(tokens_BT),), 7.0), missing_eos_score=-3.0)
    rollout = sample_answers(policy, prompts(run, 0), Letters.eos_id, 18)
    scores = run.make_experience(rollout).score_B
    assert 0 < rollout.ended_B.sum() < 6
    assert torch.equal(scores, torch.where(rollout.ended_B, 7.0, -3.0))


def test_the_rate_falls_to_zero_in_a_straight_line():
    run, seen = a_run(a_model()), []
    for i in range(4):
        run.advance(prompts(run, i), 2)
        seen.append((run.policy_optimizer.lr, run.value_optimizer.lr))
    assert seen == [pytest.approx((1e-3 * left, 3e-3 * left)) for left in (1, 0.75, 0.5, 0.25)]


def test_every_question_is_asked_once_before_one_is_asked_again():
    config = PPOConfig(batch_size=4)
    asked = [place for i in range(7) for place in choose_questions(7, i, config)]
    assert [sorted(asked[i:i + 7]) for i in range(0, 28, 7)] == [list(range(7))] * 4
    assert asked[:7] != asked[7:14]


def test_the_same_seed_gives_the_same_policy_and_another_one_another():
    (one, first), (two, second) = trained(a_model()), trained(a_model())
    assert same(one, two) and first == second
    assert not same(one, trained(a_model(), PPOConfig(**{**vars(CONFIG), "seed": 2}))[0])


@pytest.mark.parametrize("lora", [False, True])
def test_a_resumed_run_ends_as_one_that_was_never_stopped(tmp_path, lora):
    whole, wanted = trained(a_model(lora))

    class Stopped(Exception):
        pass

    asked = []

    def stop(question, answer):
        asked.append(question)
        if len(asked) > 3 * CONFIG.batch_size:
            raise Stopped
        return 0.0

    with pytest.raises(Stopped):
        trained(a_model(lora), folder=tmp_path, watch={"quality": stop})
    resumed, history = trained(a_model(lora), folder=tmp_path, resume=True)
    assert same(whole, resumed)
    assert [{k: v for k, v in row.items() if k != "quality"} for row in history] == wanted
    with pytest.raises(ValueError, match="cannot resume: lr is 0.5"):
        trained(a_model(lora), PPOConfig(**{**vars(CONFIG), "lr": 0.5}), folder=tmp_path, resume=True)


def test_what_is_watched_is_reported_and_never_learned_from():
    told, history = trained(a_model(), watch={"quality": lambda question, answer: len(answer)})
    untold, plain = trained(a_model())
    assert same(told, untold) and all("quality" in row for row in history) and "quality" not in plain[0]
    assert all(0 < row["distinct"] <= 1 for row in plain)


@pytest.mark.parametrize(("settings", "error", "message"), [
    ({"batch_size": 7, "minibatches": 2}, ValueError, "7 is no multiple of 2"), ({"lr": 0.0}, ValueError, "lr is 0.0"),
    ({"epochs": 1.5}, TypeError, "epochs is 1.5"), ({"clip": float("nan")}, ValueError, "clip is nan"),
    ({"kl_coefficient": -1.0}, ValueError, "kl_coefficient is -1.0"), ({"seed": True}, TypeError, "seed is True")])
def test_bad_settings_are_named(settings, error, message):
    with pytest.raises(error, match=message):
        PPOConfig(**settings)


def test_no_question_is_an_error():
    with pytest.raises(ValueError, match="no question given"):
        choose_questions(0, 0, CONFIG)


def law(test, *arguments):
    return lambda: test(*arguments)


MUTANTS = [
    Mutant("minillama.rlhf.train_ppo", "policy.eval(), score", "policy, score",
           test_dropout_that_obeys_eval_is_off_in_the_whole_run),
    Mutant("minillama.rlhf.model_calls", "rollout, self.config.temperature), rollout)", "rollout, 1.3), rollout)",
           law(test_before_the_first_update_every_ratio_is_exactly_one, False)),
    Mutant("minillama.rlhf.train_ppo", "< RATIO_TOLERANCE", "< 1e9",
           test_a_policy_that_is_not_the_one_that_sampled_is_found_out),
    Mutant("minillama.rlhf.train_ppo", "experience.log_prob_BA, experience.advantages_BA",
           "experience.log_prob_BA, -experience.advantages_BA",
           test_the_first_gradient_is_that_of_the_policy_gradient_theorem),
    Mutant("minillama.rlhf.train_ppo", "metrics[\"kl\"], config.kl_target", "config.kl_target, config.kl_target",
           test_the_kl_penalty_adapts_to_the_target_by_the_published_rule),
    Mutant("minillama.rlhf.train_ppo", "len(prompts), config.kl_horizon", "1, config.kl_horizon",
           test_the_kl_penalty_adapts_to_the_target_by_the_published_rule),
    Mutant("minillama.rlhf.train_ppo", "rollout.ended_B,", "rollout.ended_B | True,",
           test_an_answer_without_end_gets_the_fixed_score),
    Mutant("minillama.rlhf.rollout", "place % n_questions", "0 * place", lambda:
           test_every_question_is_asked_once_before_one_is_asked_again()),
    Mutant("minillama.rlhf.train_ppo", "1 - self.iteration / config", "1 - 0 * self.iteration / config",
           test_the_rate_falls_to_zero_in_a_straight_line),
    Mutant("minillama.rlhf.train_ppo", "1_000_003 + self.iteration", "1_000_003", law(lambda: differs_by_iteration())),
]


def differs_by_iteration():
    """At a rate of next to nothing, only the seed makes the second answers other than the first."""
    run = a_run(a_model(), lr=1e-12)
    one, two = (run.advance([[1, 3]] * 6, 2)[0].tokens_BT.tolist() for _ in range(2))
    assert one != two
