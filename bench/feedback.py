"""Learning from feedback over several seeds: how far PPO raises the hidden quality, and what no KL penalty costs.

The tour's own stages in the tour's own settings, those that feedback needs: corpus, tokenizer, pretraining, tuning,
reward model, PPO with the KL penalty and without it. About four minutes of one core for each seed. What was trained is
kept in --out, so that a run that was stopped goes on, and the table can be had again.
"""

import _rounds

COLUMNS = ("seed", "reward model: labels", "ceiling", "in truth", "quality before", "PPO", "rise", "KL", "distinct",
           "score", "no KL penalty: score", "quality", "KL", "distinct")


def results(seed, out):
    """All numbers of one seed, in the order of COLUMNS."""
    from dataclasses import replace

    from minillama.evaluate.exam import label_ceiling, order_in_truth
    from minillama.rlhf.reward_model import pair_accuracy
    from minillama.rlhf.train_reward import encode_pairs, held_out_scores
    from minillama.tour import tour_rlhf, tour_sft
    from minillama.tour.tour import TourConfig, TourReport, corpus_stage, pretrain_stage, tokenizer_stage

    report = TourReport(f"{out}/{seed}", TourConfig(seed=seed, progress=False))
    train, held_out = corpus_stage(report)
    tokenizer = tokenizer_stage(report, train, held_out)
    model = pretrain_stage(report, tokenizer, train, held_out)
    tuned = tour_sft.sft_stage(report, model, tokenizer, tour_sft.lessons_of(seed, tokenizer)).model
    feedback, penalty = tour_rlhf.forum_feedback(seed), tour_rlhf.PENALIZED
    judge = tour_rlhf.reward_stage(report, tuned, tokenizer, feedback)
    scores = held_out_scores(judge, encode_pairs(feedback.held_out, tokenizer))
    penalized, free = (tour_rlhf.train_or_load_ppo(report, name, tuned, judge, tokenizer, feedback, config)
                       for name, config in (("ppo", penalty), ("ppo-free", replace(penalty, kl_coefficient=0.0))))
    before, after, gamed = (exam.measured["quality"] for exam in (penalized.before, penalized.after, free.after))
    return (seed, pair_accuracy(*scores), label_ceiling(feedback.held_out, feedback.truth),
            order_in_truth(*scores, feedback.held_out, feedback.truth), before, after, after - before,
            penalized.after.kl, penalized.after.distinct, penalized.after.score, free.after.score, gamed, free.after.kl,
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
