"""Tables, figures, claims and pages from records. Each takes seconds and runs where Snakemake runs."""


localrules:
    all,
    table,
    figure,
    curve,
    curves,
    savings,
    claims,
    report,
    notebook,
    notebooks,


def records_of(name):
    """Return the records that a table or figure reads: diversity, metrics, stages (for their curves), teachers, sizes."""
    if name in PLAN.tables:
        return metrics_of(name) + diversity_of(name) + architectures_of(name)
    figure, runs = PLAN.figures[name], PLAN.runs_of(name)
    if figure.reads == "diversity":
        return diversity_of(name)
    if figure.reads == "metrics":
        return metrics_of(name)
    if figure.reads == "curves":
        return [PATHS.stage(run.name, seed, s.name) for run in runs for seed in run.seeds for s in run.stages]
    return [PATHS.teacher(name) for run in runs for name in run.teachers]


def caption(name):
    """Return a caption's text. It goes through a parameter, because a caption's path may have no wildcard."""
    return shipped(f"workflow/report/{name}.rst").read_text()


TABLES = {name: PATHS.results / f"tables/{name}.md" for name in PLAN.tables}
FIGURES = {name: PATHS.figures / f"{name}.png" for name in PLAN.figures}
SAVINGS = [PATHS.results / "savings.md"] if "table2" in PLAN.tables else []
CLAIMS = [PATHS.results / "claims.md"] if PLAN.tables else []


rule table:
    input:
        lambda w: records_of(w.table),
    output:
        multiext(str(PATHS.results / "tables/{table}"), ".csv", ".tex"),
        report(
            PATHS.results / "tables/{table}.md",
            caption="../report/shown.rst",
            category="Tables",
            labels={"table": "{table}"},
        ),
    log:
        f"{LOGS}/{{table}}.log",
    params:
        matrix=lambda w: fingerprint((PLAN.tables[w.table], PLAN.scale.seeds, PLAN.scale.most_seeds)),
        caption=lambda w: caption(w.table),
    shell:
        "{PYTHON:q} -m dearkd table {wildcards.table:q} --scale {SCALE:q} > {log:q} 2>&1"


rule figure:
    input:
        lambda w: records_of(w.figure),
    output:
        PATHS.figures / "{figure}.pdf",
        report(
            PATHS.figures / "{figure}.png",
            caption="../report/shown.rst",
            category="Figures",
            labels={"figure": "{figure}"},
        ),
    log:
        f"{LOGS}/{{figure}}.log",
    params:
        matrix=lambda w: fingerprint((PLAN.figures[w.figure], PLAN.scale.seeds, PLAN.scale.most_seeds)),
        caption=lambda w: caption(w.figure),
    shell:
        "{PYTHON:q} -m dearkd figure {wildcards.figure:q} --scale {SCALE:q} > {log:q} 2>&1"


rule curve:
    input:
        lambda w: [PATHS.stage(w.run, seed, s.name) for seed in PLAN.runs[w.run].seeds for s in PLAN.runs[w.run].stages],
    output:
        multiext(str(PATHS.figures / "curves/{run}"), ".pdf", ".csv", ".png"),
    log:
        f"{LOGS}/curves/{{run}}.log",
    shell:
        "{PYTHON:q} -m dearkd curves {wildcards.run:q} --scale {SCALE:q} > {log:q} 2>&1"


rule curves:
    input:
        [PATHS.figures / f"curves/{name}.png" for name in PLAN.runs],


rule savings:
    input:
        metrics_of("table2") if SAVINGS else [],
    output:
        PATHS.results / "savings.md",
    log:
        f"{LOGS}/savings.log",
    shell:
        "{PYTHON:q} -m dearkd savings --scale {SCALE:q} > {log:q} 2>&1"


rule claims:
    input:
        metrics_of(*PLAN.tables) + diversity_of(*PLAN.tables) + architectures_of(*PLAN.tables),
    output:
        PATHS.results / "claims.csv",
        PATHS.figures / "claims.csv",
        PATHS.figures / "claims.pdf",
        report(PATHS.results / "claims.md", caption="../report/claims.rst", category="Claims"),
        report(PATHS.figures / "claims.png", caption="../report/claims.rst", category="Claims"),
    log:
        f"{LOGS}/claims.log",
    params:
        matrix=fingerprint((*PLAN.tables.values(), PLAN.scale.seeds, PLAN.scale.most_seeds)),
        paper=fingerprint([shipped(f"paper/{name}.csv").read_text() for name in ("claims", "inconsistencies")]),
    shell:
        "{PYTHON:q} -m dearkd claims --scale {SCALE:q} > {log:q} 2>&1"


rule report:
    input:
        TABLES.values(),
        FIGURES.values(),
        SAVINGS,
        CLAIMS,
    output:
        PATHS.results / "report.html",
    log:
        f"{LOGS}/report.log",
    shell:
        "{PYTHON:q} -m dearkd report --scale {SCALE:q} > {log:q} 2>&1"


rule notebook:
    input:
        notebook="notebooks/{notebook}.ipynb",
        shown=[*TABLES.values(), *FIGURES.values()],
    output:
        PATHS.results / "notebooks/{notebook}.html",
    log:
        f"{LOGS}/notebooks/{{notebook}}.log",
    shell:
        "DEARKD_SCALE={SCALE:q} PYTHONPATH={workflow.basedir:q} {PYTHON:q} -m nbconvert --to html --execute {input.notebook:q}"
        " --output-dir {PATHS.results:q}/notebooks > {log:q} 2>&1"


rule notebooks:
    input:
        [PATHS.results / f"notebooks/{path.stem}.html" for path in sorted(Path("notebooks").glob("*.ipynb"))],


for _name, _path in (TABLES | FIGURES).items():

    rule:
        name:
            _name
        # The records too: an unfinished table or figure is a file as well, and Snakemake would find nothing to do.
        input:
            _path,
            records_of(_name),
        localrule: True
