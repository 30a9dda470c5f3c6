"""DearKD, reproduced: `snakemake -c2 table2`. Other targets and scales: README.md."""

from snakemake.utils import min_version

min_version("9.0")


include: "workflow/rules/common.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/teacher.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/datafree.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/paper.smk"


# This rule cannot be in paper.smk: Snakemake ignores the default target of an included file.
rule all:
    default_target: True
    input:
        TABLES.values(),
        FIGURES.values(),
        SAVINGS,
        CLAIMS,
        map(records_of, [*TABLES, *FIGURES]),


# Snakemake comes here with a target that is neither a rule nor the file of one. No rule needs a file without a folder.
rule unknown_target:
    input:
        refuse_target,
    output:
        "{target}",
    wildcard_constraints:
        target="[^/]+",
