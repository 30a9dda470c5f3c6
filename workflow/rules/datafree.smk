"""Synthetic images, one job for each shard so that a cluster makes them in parallel, and the diversity of image sets."""

SOURCES = {name: fingerprint(source) for name, source in PLAN.sources.items()}


def shard_inputs(wildcards):
    source = PLAN.sources[wildcards.source]
    rival = PLAN.competitor(wildcards.source, int(wildcards.shard))
    needs = [PATHS.teacher(source.teacher_name)]
    needs += [PATHS.stage(rival.name, wildcards.seed, rival.stages[-1].name)] if rival else []
    needs += [PATHS.teacher(source.recipe.verifier)] if source.verifier else []
    place = (wildcards.source, int(wildcards.seed), int(wildcards.shard))
    return settled(PATHS.shard(*place), needs, lambda: verify.shard(PLAN, *place))


@functools.cache  # every run that trains on these images needs the same 150 paths: half a second of planning
def shards_of(source, seed, count=0):
    """Return the records of the first `count` shards of a source, or of all shards if `count` is 0."""
    return [PATHS.shard(source, seed, i) for i in range(count or PLAN.sources[source].recipe.shards)]


def diversity_inputs(wildcards):
    needs = [PATHS.subsets("main") / "data.json", PATHS.teacher(PLAN.scale.synthesis.teacher)]
    needs += shards_of(wildcards.images, wildcards.seed) if wildcards.images in PLAN.sources else []
    place = (wildcards.images, int(wildcards.seed))
    return settled(PATHS.diversity(*place), needs, lambda: verify.diversity(PLAN, *place))


rule synthesize:
    input:
        shard_inputs,
    output:
        PATHS.results / "images/{source}/seed{seed}/shard-{shard}.json",
        PATHS.results / "images/{source}/seed{seed}/shard-{shard}.csv",
    log:
        f"{LOGS}/images/{{source}}/seed{{seed}}-shard-{{shard}}.log",
    priority: 1  # ADI's rounds of images and students are the longest chain of jobs
    threads: asks("synthesize", "threads")
    resources:
        mem_mb=asks("synthesize", "mem_mb"),
        runtime=asks("synthesize", "runtime"),
        gpu=cards("synthesize"),
        gpu_percent=percent("synthesize"),
    params:
        fingerprint=lambda w: SOURCES[w.source],
    shell:
        "{PYTHON:q} -m dearkd synthesize {wildcards.source:q} --scale {SCALE:q} --seed {wildcards.seed}"
        " --shard {wildcards.shard} --fingerprint {params.fingerprint} --wait"
        " --gpu {resources.gpu} --gpu-percent {resources.gpu_percent} > {log:q} 2>&1"


rule diversity:
    input:
        diversity_inputs,
    output:
        PATHS.results / "images/{images}/seed{seed}/diversity.json",
        PATHS.results / "images/{images}/seed{seed}/latents.csv",
        PATHS.results / "images/{images}/seed{seed}/sample.png",
    log:
        f"{LOGS}/images/{{images}}/seed{{seed}}-diversity.log",
    threads: asks("diversity", "threads")
    resources:
        mem_mb=asks("diversity", "mem_mb"),
        runtime=asks("diversity", "runtime"),
        gpu=cards("diversity"),
        gpu_percent=percent("diversity"),
    params:
        fingerprint=lambda w: fingerprint((PLAN.scale.diversity, PLAN.sources.get(w.images))),
    shell:
        "{PYTHON:q} -m dearkd diversity {wildcards.images:q} --scale {SCALE:q} --seed {wildcards.seed}"
        " --gpu {resources.gpu} --gpu-percent {resources.gpu_percent} > {log:q} 2>&1"
