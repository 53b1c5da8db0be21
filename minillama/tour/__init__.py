"""The tour: text to a talking model in minutes, on two cores, offline, with a report.

Each stage measures numbers and holds them to bands that were set before. `tour` is the main job, `tour_sft` and
`tour_rlhf` are its later stages, `report` and the `_pages` turn the numbers into one HTML file. Read `tour` first.
"""

FLOOR = 6  # imports from its own floor or a lower one
