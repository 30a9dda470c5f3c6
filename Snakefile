"""DearKD, reproduced: `snakemake -c2 table2`, or `all`, or `--config scale=imagenet`. See README.md."""

from snakemake.utils import min_version

min_version("9.0")


include: "workflow/rules/common.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/teacher.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/datafree.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/paper.smk"


# Here and not in paper.smk: Snakemake forgets the default target of a file that is included.
rule all:
    default_target: True
    input:
        TABLES.values(),
        FIGURES.values(),
        SAVINGS,
        CLAIMS,
