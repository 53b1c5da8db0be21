"""Lessons: plain Python files in percent format, found by their number."""

import re
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / "lessons"
COURSE = """00_tour 01_bpe 02_byte_bpe 03_wordpiece_unigram 04_vocab_extension 05_rms_norm 06_swiglu 07_rope
08_attention 09_masks 10_transformer 11_checkpoint 12_kv_cache 13_generate 14_data 15_pretrain 16_scaling 17_evaluate
18_memory 19_sft 20_lora 21_peft 22_int8 23_nf4 24_qlora 25_reward_model 26_gae 27_ppo 28_other_feedback 29_simt
30_gpu_memory 31_reduction 32_fused_rope 33_dequant_matmul 34_flash_attention 35_cpu_kernels
36_roofline""".split()  # written or planned


def lessons(folder=FOLDER):
    """{number: path} of the lessons that are written."""
    return {int(path.name[:2]): path for path in sorted(Path(folder).glob("[0-9][0-9]_*.py"))}


def find(number, folder=FOLDER):
    """The file of a lesson; a number that is only planned, or none at all, is an error that says what there is."""
    written = lessons(folder)
    if number in written:
        return written[number]
    if not written:
        raise ValueError(f"no lessons in {folder}: they live in minillama's checkout, start it from there")
    there = "written are " + " ".join(f"{n:02}" for n in written)
    planned = [name for name in COURSE if int(name[:2]) == number]
    raise ValueError(f"lesson {planned[0]} is planned, not written yet: {there}" if planned else
                     f"there is no lesson {number}: {there}")


def number_of(text):
    """The number in `5`, `05`, `05_rms_norm` or `lessons/05_rms_norm.py`."""
    match = re.match(r"\d{1,2}(?=\D|$)", Path(text).name)
    if not match:
        raise ValueError(f"{text!r} is no lesson: give its number, as in `lesson 5`")
    return int(match[0])
