"""Faults planted in C++ and CUDA: one build holds all of them, and its variable `planted` says which is in force."""

from collections import defaultdict


def plant_all(faults):
    """Write faults into files. faults: (number, path, text, wrong): `text` occurs once in the file, with @right@ in it,
    which is `wrong` instead while `planted` is `number`. Several may lie at one place."""
    faults_of = defaultdict(list)
    for number, path, text, wrong in faults:
        faults_of[path].append((number, text, wrong))
    for path, faults_here in faults_of.items():
        source, places = path.read_text(encoding="utf-8"), defaultdict(list)
        for number, text, wrong in faults_here:
            before, right, after = text.split("@")
            assert source.count(before + right + after) == 1, f"{text} occurs not once in {path.name}"
            start = source.index(before + right + after) + len(before)
            places[start, start + len(right)].append(f"planted == {number} ? ({wrong}) : ")
        for (start, end), choices in sorted(places.items(), reverse=True):
            source = f"{source[:start]}({''.join(choices)}({source[start:end]})){source[end:]}"
        path.write_text(source, encoding="utf-8")
