"""The oracle of `evaluate`, a process of its own: lm-evaluation-harness with its own task files over local data.

    python harness_scores.py MODEL DATA OUT SHOTS

MODEL: a folder that transformers loads. DATA: NAME/SPLIT.jsonl in the form of the hub. OUT becomes JSON: {task:
[{"sums": [...], "acc": 0 or 1, ...}, ...]}, and under "text" the rolling log-likelihood of DATA/text.txt.
"""

import json
import sys
from pathlib import Path

import lm_eval
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks._yaml_loader import load_yaml
from transformers import AutoTokenizer, LlamaForCausalLM

HOME = Path(lm_eval.__file__).parent / "tasks"
FILES = {"boolq": "super_glue/boolq/default.yaml", "piqa": "piqa/piqa.yaml", "siqa": "siqa/siqa.yaml",
         "hellaswag": "hellaswag/hellaswag.yaml", "winogrande": "winogrande/default.yaml",
         "arc_easy": "arc/arc_easy.yaml", "arc_challenge": "arc/arc_challenge.yaml",
         "obqa": "openbookqa/openbookqa.yaml", "mmlu": "mmlu/default/mmlu_abstract_algebra.yaml",
         "ceval": "ceval/ceval-valid_accountant.yaml", "cmmlu": "cmmlu/cmmlu_agronomy.yaml"}
WRITTEN = {"gsm8k": "gsm8k/gsm8k.yaml", "triviaqa": "triviaqa/default.yaml"}
LONGEST = 24  # tokens of an answer


def task_over(name, folder):
    """The harness's own task, its data read from local files instead of the hub."""
    config = load_yaml(HOME / (FILES | WRITTEN)[name], resolve_func=True)
    files = {path.stem: str(path) for path in sorted((folder / name).glob("*.jsonl"))}
    config |= {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"data_files": files}}
    if name in WRITTEN:
        config["generation_kwargs"]["max_gen_toks"] = LONGEST
    else:
        metrics = [part["metric"] for part in config["metric_list"]]
        config["metric_list"] = [{"metric": metric} for metric in dict.fromkeys([*metrics, "acc_norm", "acc_bytes"])]
    for split in ("training_split", "validation_split", "test_split"):
        if config.get(split) not in files:
            config.pop(split, None)
    return ConfigurableTask(config=config)


def scores_of(task, model, shots):
    """What the harness finds for each item."""
    task.set_config(key="num_fewshot", value=shots)
    task.set_fewshot_seed(seed=1234)
    task.build_all_requests(rank=0, world_size=1)
    docs, found = list(task.eval_docs), []
    sums = model.loglikelihood(task.instances, disable_tqdm=True)
    for number, doc in enumerate(docs):
        ours = [one for request, one in zip(task.instances, sums, strict=True) if request.doc_id == number]
        found.append({"sums": [total for total, _ in ours], **task.process_results(doc, ours)})
    return found


def written_by(task, model, shots, planted):
    """What the model writes to each question; and which of the planted answers to it are right, by each filter."""
    task.set_config(key="num_fewshot", value=shots)
    task.set_fewshot_seed(seed=1234)
    task.build_all_requests(rank=0, world_size=1)
    texts = model.generate_until(task.instances, disable_tqdm=True)
    found = [{"written": text, "right": []} for text in texts]
    for number in range(len(planted[0])):
        for request, answers in zip(task.instances, planted, strict=True):
            request.resps, request.filtered_resps = [answers[number]], {}
        task.apply_filters()
        for item, request in zip(found, task.instances, strict=True):
            item["right"].append({name: task.process_results(request.doc, [text])["exact_match"]
                                  for name, text in request.filtered_resps.items()})
    return found


def perplexities(model, documents):
    """The harness's three numbers of documents, by its own task's formulas; what its task does to their spelling is
    left out."""
    from lm_eval.api.metrics import bits_per_byte, weighted_perplexity
    from lm_eval.tasks.wikitext.preprocess_wikitext import process_results

    sums = model.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (text,), 0) for text in documents],
                                       disable_tqdm=True)
    found = [process_results({"page": text}, [total]) for text, total in zip(documents, sums, strict=True)]
    return {name: (bits_per_byte if name == "bits_per_byte" else weighted_perplexity)([one[name] for one in found])
            for name in found[0]}


def main(model, data, out, shots):
    """Score all tasks that lie in `data`."""
    torch.set_num_threads(1)
    data = Path(data)
    tokenizer = AutoTokenizer.from_pretrained(model)
    network = LlamaForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    model = HFLM(pretrained=network, tokenizer=tokenizer, batch_size=4, device="cpu")
    found = {name: scores_of(task_over(name, data), model, int(shots)) for name in FILES if (data / name).is_dir()}
    for name in WRITTEN:
        if (data / name).is_dir():
            planted = json.loads((data / f"{name}.json").read_text(encoding="utf-8"))
            found[name] = written_by(task_over(name, data), model, int(shots), planted)
    if (data / "documents.json").exists():
        found["documents"] = perplexities(model, json.loads((data / "documents.json").read_text(encoding="utf-8")))
    if (data / "text.txt").exists():
        text = (data / "text.txt").read_text(encoding="utf-8")
        request = Instance("loglikelihood_rolling", {}, (text,), 0)
        found["text"] = model.loglikelihood_rolling([request], disable_tqdm=True)
    Path(out).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
