"""The sentences of docs/convergence.md and docs/unshown.md, made from the lines of the searches."""

import csv
from pathlib import Path

import pandas as pd
import yaml
from prose import cell, leads, lpips, lpips_made

from dearkd import record

SEARCHES = Path("results/converged/search")
NARROW = ("rate", "epochs")
"""Files of the first search, with the narrow augmentation."""


def lines(*names):
    return [line for name in names for line in csv.DictReader((SEARCHES / f"{name}.csv").open())]


def values(row, *names, seeds=(), **where):
    """Validation accuracy by seed of a row's lines in these files."""
    where = {key: str(value) for key, value in where.items()}
    found = {
        int(line["seed"]): float(line["validation_top1"])
        for line in lines(*names)
        if line["row"] == row and all(line[key] == value for key, value in where.items())
    }
    assert found, (row, names, where)
    return pd.Series({seed: value for seed, value in found.items() if not seeds or seed in seeds})


def first(row, epochs, lr=0.006, **more):
    return values(row, *NARROW, epochs=epochs, lr=lr, **more)


def tenth(row, trial):
    return values(row, "tenth", trial=trial)


def longer(row, before, after, lr=0.006):
    """What more epochs give the seeds that have both."""
    return (first(row, after, lr) - first(row, before, lr)).dropna()


def doubled(row):
    """What twice the epochs of the recipe give a row, in doubling.yaml."""
    epochs = {int(line["epochs"]) for line in lines("doubling") if (line["row"], line["trial"]) == (row, "the recipe")}
    (once,) = epochs
    return (values(row, "doubling", epochs=2 * once) - values(row, "doubling", trial="the recipe")).mean()


def chosen(row):
    """What twice the epochs of the chosen rate and epochs give a row, in peers.yaml."""
    twice = next(line for line in lines("peers") if (line["row"], line["trial"]) == (row, "twice the epochs"))
    same = {"lr": twice["lr"], "epochs": int(twice["epochs"]) // 2}
    return (values(row, "peers", trial="twice the epochs") - values(row, "doubling", "peers", **same)).mean()


def signed(value):
    """+ 0.6, − 0.4 or 0.0."""
    text = f"{value:z.1f}"
    return text if text == "0.0" else text.replace("-", "− ") if value < 0 else f"+ {text}"


def size(value):
    return f"{abs(value):.1f}"


def several(found):
    return f"{found.mean():.1f} ± {found.std():.1f}"


DEIT, DEAR, MHCA = "DeiT-Ti, 10 %", "DearKD-Ti, 10 %", "DeiT-Ti + MHCA, 10 %"
WIDE, TWICE = "wider shifts", "wider shifts, 480 epochs"


def convergence():
    change = {row: (tenth(row, TWICE) - tenth(row, WIDE)) for row in (DEIT, DEAR, MHCA, "DeiT-Ti", "DearKD-Ti")}
    others = sorted(doubled(r) for r in ("ResNet-18", "EffiNet-B0", "RegNetY-4GF", "T2T-ViT-7", "Swin-T", "ViT-B/16"))
    yield (
        f"**DeiT-Ti on a tenth gains {size(change[DEIT].mean())} points from 480 epochs and DeiT-S gains "
        f"{size(doubled('DeiT-S'))}.**",
        change[DEIT].mean() >= 1 and doubled("DeiT-S") >= 1,
    )
    yield (
        f"The other families gained {others[0]:.1f} to {others[-1]:.1f} points from twice the epochs, and "
        f"fine-tuning of "
        f"DeiT-B gained {size(doubled('DeiT-B on upside_down'))}.",
        True,
    )
    yield (
        f"it has {', '.join(f'{first(DEIT, e).mean():.1f}' for e in (120, 240))} and "
        f"{first(DEIT, 480).mean():.1f} % at 120, "
        "240 and 480 epochs.",
        True,
    )
    narrow, wide = first(DEIT, 240, seeds=(102, 103)), tenth(DEIT, WIDE)
    by = {
        trial: tenth(DEIT, trial).mean() - narrow.mean()
        for trial in ("weight decay 0.3", "weight decay 1", "drop path 0.1")
    }
    yield (
        f"**The wide augmentation gives DeiT {wide.mean() - narrow.mean():.0f} points on a tenth.** With the "
        f"narrow one the "
        f"same two seeds have {narrow[102]:.1f} and {narrow[103]:.1f} at 240 epochs, {narrow.mean():.1f} on "
        f"average. Weight "
        f"decay of 0.3 gives {by['weight decay 0.3']:.0f} point and of 1.0 takes {-by['weight decay 1']:.0f}. "
        f"Twice the "
        f"learning rate changes nothing. Drop path takes {-by['drop path 0.1']:.0f}.",
        abs(tenth(DEIT, "twice the rate").mean() - narrow.mean()) < 0.5,
    )
    gap = first(DEAR, 240, seeds=(100, 101)).mean() - first(DEIT, 240, seeds=(100, 101)).mean()
    yield (
        f"**DearKD then leads DeiT on a tenth by {tenth(DEAR, WIDE).mean() - wide.mean():.0f} points.** With "
        f"the narrow "
        f"augmentation it led by {gap:.0f}, on two other seeds. MHCA without a teacher also led DeiT by more "
        f"with the narrow "
        f"augmentation ({first(MHCA, 240)[100]:.1f} against {first(DEIT, 240)[100]:.1f}, seed 100).",
        True,
    )
    yield (
        f"({tenth(MHCA, WIDE).mean():.1f} and {tenth(DEAR, WIDE).mean():.1f} at 240 epochs, two seeds).",
        True,
    )
    yield (
        f"with test images and eight seeds, shows {leads('converged')['MHCA, no teacher', 10][0]:.1f} points.",
        leads("converged")["MHCA, no teacher", 10][1] > 0,
    )
    yield (
        f"DearKD gains {size(change[DEAR].mean())} on a tenth and loses {size(change['DearKD-Ti'].mean())} on "
        f"all images. MHCA "
        f"gains {size(change[MHCA].mean())}. DeiT gains {size(change['DeiT-Ti'].mean())} on all images and "
        f"{size(change[DEIT].mean())} on a tenth ({change[DEIT][102]:.1f} and {signed(change[DEIT][103])}). "
        f"**Only DeiT on a "
        "tenth misses the condition.**",
        {row for row, by in change.items() if abs(round(by.mean(), 1)) >= 1} == {DEIT}
        and change["DearKD-Ti"].mean() < 0,
    )
    rate = {row: tenth(row, "wider shifts, twice the rate").mean() - tenth(row, WIDE).mean() for row in (DEIT, DEAR)}
    yield (
        f"gives DeiT {rate[DEIT]:.1f} points on a tenth and DearKD none. Two seeds cannot tell {rate[DEIT]:.1f} "
        f"from nothing",
        round(rate[DEAR], 1) == 0,
    )
    yield from first_search()
    yield from outcomes()
    yield (
        f"**DeiT-S misses the condition by {doubled('DeiT-S') - 1:.1f},** which is one image of 500.",
        True,
    )
    yield (
        f"DearKD loses {size(doubled('DearKD-S'))} from twice the epochs at every size.",
        len({signed(d) for d in (doubled("DearKD-S"), doubled("DearKD-B"), change["DearKD-Ti"].mean())}) == 1,
    )
    yield (
        f"(loss 0.000) at 240 epochs and still gains {doubled('ViT-B/16'):.1f}.",
        all(float(line["train_ce"]) < 0.0005 for line in lines("doubling") if line["row"] == "ViT-B/16"),
    )
    better = [
        values(row, "peers", trial=trial).mean() - values(row, "doubling", trial="the recipe").mean()
        for row in ("ResNet-18", "EffiNet-B0")
        for trial in ("half the rate", "twice the rate")
    ]
    yield f"For ResNet-18 and EfficientNet-B0 no rate is better by more than {max(better):.1f}, and theirs stays.", True
    again = [chosen(row) for row in ("ResNet-18", "EffiNet-B0", "RegNetY-4GF", "T2T-ViT-7", "Swin-T")]
    yield (
        f"then the other families gain {max(again):.1f} points or less from twice the epochs",
        max(map(abs, again)) < 1,
    )
    yield (
        "on a tenth at 480 epochs, with eight seeds.",
        all(cell("table2", row, scale="converged", fraction=10).n == 8 for row in ("DeiT-Ti, long", "DearKD-Ti, long")),
    )


def first_search():
    """The section on rates and epochs with the narrow augmentation."""
    yield (
        f"240 epochs give DeiT-Ti and DearKD-Ti {longer('DeiT-Ti', 120, 240).mean():.1f} each (two seeds). On "
        f"the one seed "
        f"that was tried they give DeiT-B {signed(longer('DeiT-B', 120, 240, 0.003).mean())} and DearKD-B "
        f"{signed(longer('DearKD-B', 120, 240, 0.003).mean())}.",
        signed(longer("DearKD-Ti", 120, 240).mean()) == signed(longer("DeiT-Ti", 120, 240).mean()),
    )
    yield (
        f"The same six seeds gain {several(longer(DEIT, 120, 240))} from 240 epochs.",
        len(longer(DEIT, 120, 240)) == 6,
    )
    yield (
        f"Seeds 102 to 105 gain another {several(longer(DEIT, 240, 480))} from 480 epochs.",
        [*longer(DEIT, 240, 480).index] == [102, 103, 104, 105],
    )
    six = first(DEIT, 120)
    yield f"DeiT's six seeds are between {six.min():.1f} and {six.max():.1f}.", len(six) == 6
    yield (
        f"On a tenth it has {first(MHCA, 120).mean():.1f} at 120 epochs (two seeds), between DeiT's "
        f"{six.mean():.0f} and "
        f"DearKD's {first(DEAR, 120).mean():.0f}. At 240 epochs it has {first(MHCA, 240)[100]:.1f} and DearKD has "
        f"{first(DEAR, 240)[100]:.1f} (seed 100).",
        True,
    )
    pair = (100, 101)
    whole = (first("DearKD-Ti", 240, seeds=pair) - first("DeiT-Ti", 240, seeds=pair)).mean()
    small = (first(DEAR, 240, seeds=pair) - first(DEIT, 240, seeds=pair)).mean()
    paper = [cell("table2", "DeiT-Ti", "gap", fraction=f).paper for f in (100, 10)]
    yield (
        f"DearKD leads DeiT by {whole:.1f} on all images (the paper: {paper[0]}) and by {small:.0f} on a tenth "
        f"({paper[1]}), at "
        f"240 epochs, seeds 100 and 101. At 480 epochs DeiT has {first(DEIT, 480).mean():.1f} on a tenth",
        True,
    )
    cnn = {row: longer(row, 60, 120).mean() for row in ("RegNetY-4GF", "ResNet-18", "EffiNet-B0")}
    yield (
        f"120 epochs instead of 60 give RegNetY {cnn['RegNetY-4GF']:.0f} points, ResNet-18 {cnn['ResNet-18']:.0f} and "
        f"EfficientNet {cnn['EffiNet-B0']:.1f}. 240 epochs instead of 120 give T2T-ViT "
        f"{longer('T2T-ViT-7', 120, 240, 0.002).mean():.1f} and Swin "
        f"{longer('Swin-T', 120, 240, 0.002).mean():.1f} (one seed).",
        len(longer("Swin-T", 120, 240, 0.002)) == 1,
    )
    yield (
        f"72 epochs instead of 36 give DearKD-B less than a point, and DeiT-B {tuned('DeiT-B', 'upside_down'):.1f} on "
        "upside_down (one seed).",
        max(tuned("DearKD-B", target) for target in ("left_of_two", "upside_down")) < 1,
    )


def tuned(model, target):
    """What 72 epochs of fine-tuning instead of 36 give."""
    return longer(f"{model} on {target}", 36, 72, 0.001).mean()


def outcomes():
    """The last column of the table of expectations."""

    def slower(row, lr):
        return (first(row, 120, lr / 2) - first(row, 120, lr)).dropna()

    yield f"| both lose: {-slower('DeiT-Ti', 0.006).mean():.1f} and {-slower('DearKD-Ti', 0.006).mean():.1f} |", True
    by = {row: signed(longer(row, 120, 240).mean()) for row in ("DeiT-Ti", DEIT, "DearKD-Ti", DEAR)}
    yield f"| DeiT-Ti {by['DeiT-Ti']} and {by[DEIT]}, DearKD-Ti {by['DearKD-Ti']} and {by[DEAR]} |", True
    yield f"| {first(DEIT, 120).std():.1f} for DeiT-Ti at 120 epochs (six seeds);", True
    yield (
        f"| B loses {-slower('DearKD-B', 0.003).mean():.1f} (DearKD) and {-slower('DeiT-B', 0.003).mean():.1f} "
        f"(DeiT); DeiT-S "
        f"loses {-slower('DeiT-S', 0.004).mean():.1f} (one seed) |",
        len(slower("DeiT-S", 0.004)) == 1,
    )
    cnns = ("ResNet-18", "EffiNet-B0", "RegNetY-4GF")
    over = [first(row, 60).mean() - cell("table3", row).mean for row in cnns]
    then = [signed(longer(row, 60, 120).mean()) for row in cnns]
    yield (
        f"by {over[0]:.0f}, {over[1]:.0f} and {over[2]:.0f} at 60; then {then[0]}, {then[1]} and {then[2]} at 120 |",
        True,
    )
    rates = {"ViT-B/16": 0.003, "T2T-ViT-7": 0.002, "Swin-T": 0.002}
    over = [first(row, 120, lr).mean() - cell("table3", row).mean for row, lr in rates.items()]
    vit, t2t, swin = (signed(longer(row, 120, 240, lr).mean()) for row, lr in rates.items())
    yield (
        f"by {over[0]:.0f}, {over[1]:.0f} and {over[2]:.0f} at 120; then T2T-ViT {t2t} and Swin {swin} at 240 "
        f"(one seed), ViT "
        f"{vit} |",
        True,
    )
    both = {m: [signed(tuned(m, t)) for t in ("left_of_two", "upside_down")] for m in ("DeiT-B", "DearKD-B")}
    yield (
        f"DeiT-B {both['DeiT-B'][0]} and {both['DeiT-B'][1]}, DearKD-B {both['DearKD-B'][0]} and "
        f"{both['DearKD-B'][1]} (one seed)",
        True,
    )
    yield f"| + {several(longer(DEIT, 240, 480))} (four seeds) |", True


def unshown():
    """docs/unshown.md."""
    asked = yaml.safe_load(Path("workflow/search/unshown.yaml").read_text())
    planned = len(asked["seeds"]) * sum(len(trial["rows"]) for trial in asked["trials"])
    yield f"{len(lines('unshown'))} of {planned} trainings have been run.", True
    cutmix = {row: values(row, "unshown", trial="cutmix on half of the images") for row in ("+ distill", "baseline")}
    gain = (cutmix["+ distill"] - cutmix["baseline"]).mean()
    yield (
        f"Label distillation has {both(cutmix['+ distill'])} %, the baseline {both(cutmix['baseline'])} % "
        f"(seeds 102 and 103). "
        f"0.5 to 1.5 points were expected. The mean difference is {gain:.1f}, half an image of 250, and so "
        f"cannot be told from "
        "nothing.",
        gain < 0.5,
    )
    one, two = (values(row, "unshown", trial="the recipe") for row in ("one stage", "DearKD-Ti"))
    yield (
        f"Only the recipe itself has run: one stage has {both(one)} %, and two stages have {two[102]:.1f} % "
        f"with seed 102. The "
        "early switches have not run.",
        [*two.index] == [102] and not any("switch" in line["trial"] for line in lines("unshown")),
    )
    real = [lpips("real images", metric) for metric in ("lpips", "lpips_blurred")]
    yield (
        f"Real images are last with LPIPS's trained weights, {real[0]} against {lpips_made()}, and after the blur "
        f"too, {real[1]} against {lpips_made('lpips_blurred')}.",
        all(lpips("real images", m) < lpips_made(m) for m in ("lpips", "lpips_blurred")),
    )

    many = {name: validation("more-images", run, 102) for name, run in (*LEARNERS.items(), ("DeiT", "deit-Ti"))}
    few = {name: [validation("converged", run, seed) for seed in (0, 1)] for name, run in LEARNERS.items()}
    yield (
        f"Students of DeepInversion's images have {many['DeepInversion']:.1f} %, of DF-DearKD's "
        f"{many['DF-DearKD']:.1f} %, and DeiT on real images has {many['DeiT']:.1f} % (seed 102).",
        True,
    )
    yield (
        f"With 370 images seeds 0 and 1 have {few['DeepInversion'][0]:.1f} and {few['DeepInversion'][1]:.1f} % "
        f"(DeepInversion), {few['DF-DearKD'][0]:.1f} and {few['DF-DearKD'][1]:.1f} % (DF-DearKD). So ten times as many "
        "images give no gain, where 5 to 8 points were expected.",
        all(few[name][0] < many[name] < few[name][1] for name in LEARNERS),
    )
    yield (
        f"DF-DearKD leads DeepInversion by {many['DF-DearKD'] - many['DeepInversion']:.1f}, as was expected;",
        1 <= many["DF-DearKD"] - many["DeepInversion"] <= 3,
    )


LEARNERS = {"DeepInversion": "dearkd-Ti-images~deepinversion", "DF-DearKD": "dearkd-Ti-images~df_dearkd"}


def validation(scale, run, seed):
    """Validation accuracy after the last epoch."""
    stages = sorted(Path(f"results/{scale}/runs/{run}/seed{seed}").glob("I*.json"))
    return record.read(stages[-1])["curve"][-1]["validation_top1"]


def both(found):
    return f"{found[102]:.1f} and {found[103]:.1f}"
