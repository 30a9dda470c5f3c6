"""Lists of the class-balanced nested subsets of each data set, with sha256, and smaller copies of its images."""


def subset_settings(data):
    """Return the settings that decide the lists of a data set: the seeds only if each draws its own subsets."""
    scale = PLAN.scale
    drawn = (scale.seeds,) if scale.subset_draw == "seed" else ()
    return (scale.data[data], scale.fractions, scale.subset_seed, *drawn)


def listed(data):
    return PATHS.subsets(data) / "data.json"


rule subset:
    input:
        lambda w: settled(listed(w.data), [], lambda: verify.described(PLAN, w.data, listed(w.data), "subset")),
    output:
        PATHS.results / "subsets/{data}/data.json",
    log:
        f"{LOGS}/subset-{{data}}.log",
    threads: asks("data", "threads")
    resources:
        mem_mb=asks("data", "mem_mb"),
        runtime=asks("data", "runtime"),
    params:
        fingerprint=lambda w: fingerprint(subset_settings(w.data)),
    shell:
        "{PYTHON:q} -m dearkd subset {wildcards.data:q} --scale {SCALE:q} > {log:q} 2>&1"


rule presize:
    input:
        lambda w: settled(
            PATHS.presized(w.data),
            [listed(w.data)],
            lambda: verify.described(PLAN, w.data, PATHS.presized(w.data), "presize"),
        ),
    output:
        PATHS.results / "presized/{data}.json",
    log:
        f"{LOGS}/presize-{{data}}.log",
    threads: asks("data", "threads")
    resources:
        mem_mb=asks("data", "mem_mb"),
        runtime=asks("data", "runtime"),
    params:
        fingerprint=lambda w: fingerprint(PLAN.scale.data[w.data]),
    shell:
        "{PYTHON:q} -m dearkd presize {wildcards.data:q} --scale {SCALE:q} > {log:q} 2>&1"
