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


def task_over(name, folder):
    """The harness's own task, its data read from local files instead of the hub."""
    config = load_yaml(HOME / FILES[name], resolve_func=True)
    files = {path.stem: str(path) for path in sorted((folder / name).glob("*.jsonl"))}
    config |= {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"data_files": files}}
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


def main(model, data, out, shots):
    """Score all tasks that lie in `data`."""
    torch.set_num_threads(1)
    data = Path(data)
    tokenizer = AutoTokenizer.from_pretrained(model)
    network = LlamaForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    model = HFLM(pretrained=network, tokenizer=tokenizer, batch_size=4, device="cpu")
    found = {name: scores_of(task_over(name, data), model, int(shots)) for name in FILES if (data / name).is_dir()}
    if (data / "text.txt").exists():
        text = (data / "text.txt").read_text(encoding="utf-8")
        request = Instance("loglikelihood_rolling", {}, (text,), 0)
        found["text"] = model.loglikelihood_rolling([request], disable_tqdm=True)
    Path(out).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
