"""Teachers, whose accuracy is checked, and their hard labels, which are computed once for many runs."""


def teacher_inputs(wildcards):
    run = PLAN.teacher_run(wildcards.teacher)
    trained = [PATHS.stage(run.name, 0, run.stages[-1].name)] if run else []
    name = wildcards.teacher
    return settled(PATHS.teacher(name), [listed("main"), *trained], lambda: verify.teacher(PLAN, name))


rule teacher:
    input:
        teacher_inputs,
    output:
        PATHS.results / "teachers/{teacher}.json",
    log:
        f"{LOGS}/teacher-{{teacher}}.log",
    threads: asks("teacher", "threads")
    resources:
        mem_mb=asks("teacher", "mem_mb"),
        runtime=asks("teacher", "runtime"),
        gpu=cards("teacher"),
        gpu_percent=percent("teacher"),
    params:
        fingerprint=lambda w: fingerprint(PLAN.scale.teachers[w.teacher]),
    shell:
        "{PYTHON:q} -m dearkd teacher {wildcards.teacher:q} --scale {SCALE:q}"
        " --gpu {resources.gpu} --gpu-percent {resources.gpu_percent} > {log:q} 2>&1"


def labels_inputs(wildcards):
    labels = PLAN.labels[wildcards.labels]
    needs = [PATHS.subsets(labels.data_name) / "data.json", PATHS.teacher(labels.teacher_name)]
    needs += [PATHS.presized(labels.data_name)] if labels.data.presize else []
    place = (wildcards.labels, int(wildcards.seed), int(wildcards.shard))
    return settled(PATHS.labels(*place), needs, lambda: verify.labels(PLAN, *place))


rule labels:
    input:
        labels_inputs,
    output:
        PATHS.results / "labels/{labels}/seed{seed}/{shard}.json",
    log:
        f"{LOGS}/labels/{{labels}}/seed{{seed}}-{{shard}}.log",
    threads: asks("labels", "threads")
    resources:
        mem_mb=asks("labels", "mem_mb"),
        runtime=asks("labels", "runtime"),
        gpu=cards("labels"),
        gpu_percent=percent("labels"),
    params:
        epochs=PLAN.scale.label_epochs,
    shell:
        "{PYTHON:q} -m dearkd labels {wildcards.labels:q} --scale {SCALE:q} --seed {wildcards.seed}"
        " --shard {wildcards.shard} --wait"
        " --gpu {resources.gpu} --gpu-percent {resources.gpu_percent} > {log:q} 2>&1"
