"""`make lint`: Snakemake's own lint of the workflow, without three rules that do not fit it.

Run in the project's folder; prints what is left, and fails if there is any.
"""

import re
import subprocess
import sys

ACCEPTED = {
    # an input function is read together with its rule; what several rules share is in common.smk
    r"Mixed rules and functions in same snakefile",
    # one environment for all jobs: requirements.lock, environment.yml, Containerfile
    r"Specify a conda environment or container for each rule",
    # the same for all jobs of a project; what decides a result is in its params
    r"Shell command directly uses variable (PYTHON|SCALE|PATHS|workflow) from outside of the rule",
}

command = [sys.executable, "-m", "snakemake", "--lint", "--config", "scale=smoke"]  # its `--lint json` prints text too
done = subprocess.run(command, capture_output=True, text=True)
found, place = [], ""
for line in done.stderr.splitlines():
    if title := re.match(r"    \* (.*?)\.?:$", line):
        found.append((title[1], place))
    elif line.startswith("Lints for "):
        place = line.removeprefix("Lints for ").rstrip(":")

left = [f"{place}: {title}" for title, place in found if not any(re.fullmatch(rule, title) for rule in ACCEPTED)]
unused = [rule for rule in ACCEPTED if not any(re.fullmatch(rule, title) for title, _ in found)]
if unused:  # Snakemake has failed, or speaks otherwise: silence would pass for praise
    left.append(f"{done.stderr[-2000:]}\nAccepted in {__file__} and not found: {unused}")
sys.exit("\n".join(left) or 0)
