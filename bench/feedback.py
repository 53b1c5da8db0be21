"""Learning from feedback over several seeds: how far PPO raises the hidden quality, and what it costs without a leash.

The tour's own stages in the tour's own settings, those that feedback needs: corpus, tokenizer, pretraining, tuning,
reward model, PPO on the leash and off it. About four minutes of one core for each seed. What was trained is kept in
--out, so that a run that was stopped goes on, and the table can be had again.
"""

import _rounds

COLUMNS = ("seed", "reward model: labels", "ceiling", "in truth", "quality before", "PPO", "rise", "KL", "distinct",
           "score", "no leash: score", "quality", "KL", "distinct")


def results(seed, out):
    """All numbers of one seed, in the order of COLUMNS."""
    from dataclasses import replace

    from minillama import tour_rlhf, tour_sft
    from minillama.rlhf.preferences import label_ceiling, order_in_truth
    from minillama.rlhf.reward_model import pair_accuracy
    from minillama.rlhf.train_reward import encode_pairs, held_out_scores
    from minillama.tour import Road, TourConfig, corpus_stage, pretrain_stage, tokenizer_stage

    road = Road(f"{out}/{seed}", TourConfig(seed=seed, progress=False))
    train, held_out = corpus_stage(road)
    tokenizer = tokenizer_stage(road, train, held_out)
    model = pretrain_stage(road, tokenizer, train, held_out)
    tuned = tour_sft.sft_stage(road, model, tokenizer, tour_sft.lessons_of(seed, tokenizer)).model
    feedback, leash = tour_rlhf.forum_feedback(seed), tour_rlhf.LEASHED
    judge = tour_rlhf.reward_stage(road, tuned, tokenizer, feedback)
    scores = held_out_scores(judge, encode_pairs(feedback.held_out, tokenizer))
    leashed, free = (tour_rlhf.practised(road, name, tuned, judge, tokenizer, feedback, config) for name, config in
                     (("ppo", leash), ("ppo-free", replace(leash, kl_coefficient=0.0))))
    before, after, gamed = (exam.measured["quality"] for exam in (leashed.before, leashed.after, free.after))
    return (seed, pair_accuracy(*scores), label_ceiling(feedback.held_out, feedback.truth),
            order_in_truth(*scores, feedback.held_out, feedback.truth), before, after, after - before,
            leashed.after.kl, leashed.after.distinct, leashed.after.score, free.after.score, gamed, free.after.kl,
            free.after.distinct)


def main(argv=None):
    chosen = _rounds.options(__doc__, argv, lambda parser: (
        parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="default: 0 to 4"),
        parser.add_argument("--out", default="out/feedback", help="for what is trained (default: %(default)s)")))
    rows = [results(seed, chosen.out) for seed in chosen.seeds]
    print("| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|")
    for row in rows:
        print("| " + " | ".join(f"{value:.3f}" if isinstance(value, float) else str(value) for value in row) + " |")


if __name__ == "__main__":
    main()
