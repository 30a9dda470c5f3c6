"""Teachers: weights brought to where jobs read them, accuracy checked."""


def teacher_inputs(wildcards):
    run = PLAN.teacher_run(wildcards.teacher)
    trained = [PATHS.stage(run.name, 0, "I")] if run else []
    return settled(PATHS.teacher(wildcards.teacher), [PATHS.subsets("main") / "data.json", *trained])


rule teacher:
    input:
        teacher_inputs,
    output:
        PATHS.results / "teachers/{teacher}.json",
    params:
        fingerprint=lambda w: fingerprint(PLAN.scale.teachers[w.teacher]),
    log:
        f"{LOGS}/teacher-{{teacher}}.log",
    threads: asks("teacher", "threads")
    resources:
        mem_mb=asks("teacher", "mem_mb"),
        runtime=asks("teacher", "runtime"),
        gpu=asks("teacher", "gpu"),
    shell:
        "{PYTHON:q} -m dearkd teacher {wildcards.teacher:q} --scale {SCALE:q} --gpu {resources.gpu} > {log:q} 2>&1"
