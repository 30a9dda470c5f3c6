"""One rule trains every stage of every run, teachers included.

Checkpoints are not outputs of the rule, because Snakemake deletes the outputs of failed jobs.
"""


def train_inputs(wildcards):
    run, stage = PLAN.runs[wildcards.run], stage_of(wildcards)
    before = run.stages[: run.stages.index(stage)][-1:]
    needs = [PATHS.subsets(stage.data_name) / "data.json"]
    needs += [PATHS.stage(run.name, wildcards.seed, s.name) for s in before]
    if run.initial:
        before = PLAN.runs[run.initial]
        needs += [PATHS.stage(before.name, wildcards.seed, before.stages[-1].name)]
    needs += [PATHS.teacher(stage.teacher_name)] if stage.teacher_name else []
    needs += [PATHS.presized(stage.data_name)] if stage.data.presize and not stage.source else []
    needs += shards_of(stage.source.name, wildcards.seed, stage.shards) if stage.source else []
    if shards := PLAN.label_shards(stage):
        name = PLAN.labels_of(stage).name  # once and not for each shard: it computes a fingerprint
        needs += [PATHS.labels(name, wildcards.seed, shard) for shard in shards]
    path, seed = PATHS.stage(run.name, wildcards.seed, stage.name), int(wildcards.seed)
    return settled(path, needs, lambda: verify.stages(PLAN, run, seed, stage.name))


rule train:
    input:
        train_inputs,
    output:
        PATHS.results / "runs/{run}/seed{seed}/{stage}.json",
    log:
        f"{LOGS}/{{run}}/seed{{seed}}-{{stage}}.log",
    threads: asks("train", "threads")
    resources:
        mem_mb=asks("train", "mem_mb"),
        runtime=asks("train", "runtime"),
        gpu=cards("train"),
        gpu_percent=percent("train"),
    params:
        fingerprint=lambda w: fingerprint_of(w.run, w.stage),
    shell:
        "{PYTHON:q} -m dearkd train {wildcards.run:q} --scale {SCALE:q} --seed {wildcards.seed} --stage {wildcards.stage}"
        " --fingerprint {params.fingerprint} --wait"
        " --gpu {resources.gpu} --gpu-percent {resources.gpu_percent} > {log:q} 2>&1"
