"""Accuracy and predictions of finished runs and pretrained peers on the test images; speed of architectures."""


def evaluate_inputs(wildcards):
    run, seed = PLAN.runs[wildcards.run], int(wildcards.seed)
    last = PATHS.stage(run.name, seed, run.stages[-1].name)
    return settled(PATHS.metrics(run.name, seed), [last], lambda: verify.evaluation(PLAN, run, seed))


rule evaluate:
    input:
        evaluate_inputs,
    output:
        PATHS.results / "runs/{run}/seed{seed}/metrics.json",
        PATHS.results / "runs/{run}/seed{seed}/predictions.csv",
    log:
        f"{LOGS}/{{run}}/seed{{seed}}-evaluate.log",
    threads: asks("evaluate", "threads")
    resources:
        mem_mb=asks("evaluate", "mem_mb"),
        runtime=asks("evaluate", "runtime"),
        gpu=cards("evaluate"),
        gpu_percent=percent("evaluate"),
    params:
        fingerprint=lambda w: fingerprint_of(w.run),
    shell:
        "{PYTHON:q} -m dearkd evaluate {wildcards.run:q} --scale {SCALE:q} --seed {wildcards.seed}"
        " --fingerprint {params.fingerprint}"
        " --gpu {resources.gpu} --gpu-percent {resources.gpu_percent} > {log:q} 2>&1"


rule pretrained:
    input:
        lambda w: settled(
            PATHS.pretrained(PEERS[w.peer][0]), [listed("main")], lambda: verify.pretrained(PLAN, PEERS[w.peer][0])
        ),
    output:
        PATHS.results / "pretrained/{peer}.json",
    log:
        f"{LOGS}/pretrained/{{peer}}.log",
    threads: asks("evaluate", "threads")
    resources:
        mem_mb=asks("evaluate", "mem_mb"),
        runtime=asks("evaluate", "runtime"),
        gpu=cards("evaluate"),
        gpu_percent=percent("evaluate"),
    params:
        fingerprint=lambda w: fingerprint(PEERS[w.peer][1]),
        label=lambda w: PEERS[w.peer][0],
    shell:
        "{PYTHON:q} -m dearkd pretrained {params.label:q} --scale {SCALE:q}"
        " --gpu {resources.gpu} --gpu-percent {resources.gpu_percent} > {log:q} 2>&1"


rule throughput:
    input:
        lambda w: settled(PATHS.throughput, [], lambda: verify.architectures(PLAN, PLAN.architectures_of(*PLAN.tables))),
    output:
        PATHS.throughput,
    log:
        f"{LOGS}/throughput.log",
    threads: asks("throughput", "threads")
    resources:
        mem_mb=asks("throughput", "mem_mb"),
        runtime=asks("throughput", "runtime"),
        gpu=cards("throughput"),
        gpu_percent=percent("throughput"),
    params:
        fingerprint=fingerprint(PLAN.scale.throughput),
        names=PLAN.architectures_of(*PLAN.tables),
    shell:
        "{PYTHON:q} -m dearkd throughput --scale {SCALE:q}"
        " --gpu {resources.gpu} --gpu-percent {resources.gpu_percent} > {log:q} 2>&1"
