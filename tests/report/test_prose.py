"""Every number in the prose of the results is made here from committed files, and so is the page's sentence around it.

`SAID` has sentences of a page, made from the records, each with the condition under which its words are true. A record
that changes a number or a verdict makes a test fail, which prints the sentence that is right.
"""

import re
from pathlib import Path

import pytest
import searches
from prose import (
    BIG,
    MADE,
    SMALL,
    above,
    at_end,
    cell,
    claims,
    counted,
    failing,
    free,
    gain,
    grown,
    holm,
    lead,
    leads,
    lpips,
    lpips_made,
    margin,
    mean,
    no_difference,
    paper,
    plan,
    saved,
    so_far,
    spread,
    t1,
    t2,
    verdict,
    whole,
)

from dearkd import record
from dearkd.report import unfinished


def readme():
    done = ", ".join(f"{so_far(BIG, i)} {'results ' * (i == 1)}of Table {i}" for i in range(1, 7))
    yield f"(`converged`) | so far {done} (", True
    fashion = record.read(Path("results/fashion/teachers/main.json"))
    yield f"teacher trained, [{fashion['top1']:.1f} % on validation", fashion["gate"] == "validation"
    yield "Tables 3 and 4 are complete only at `digits`", whole(SMALL, 3, 4) and not (whole(BIG, 3) or whole(BIG, 4))
    yield (
        f"by {lead('DeiT-Ti', 10)} points on 10 % of the images, {lead('DeiT-Ti', 25)} on 25 %, "
        f"{lead('DeiT-Ti', 50)} on "
        f"50 % and {lead('DeiT-Ti', 100)} on 100 %. In the paper it leads by "
        f"{paper('table2', 'DeiT-Ti', 'gap', fraction=10)}, {paper('table2', 'DeiT-Ti', 'gap', fraction=25)}, "
        f"{paper('table2', 'DeiT-Ti', 'gap', fraction=50)} and {paper('table2', 'DeiT-Ti', 'gap', fraction=100)}.",
        verdict(BIG, "C10") == "holds"
        and max(leads(BIG)["DeiT-Ti", f] for f in (10, 25, 50, 100)) == leads(BIG)["DeiT-Ti", 10],
    )
    yield (
        f"DearKD on half of the images beats DeiT on all images by {margin('C09')}. On a quarter of the images "
        f"the two cannot "
        "be told apart.",
        verdict(BIG, "C09") == "holds" and saved("DeiT-Ti", "; on 25 % the two cannot be told apart"),
    )
    yield (
        f"DearKD and MHCA without a teacher differ by {lead('MHCA, no teacher', 100)}. **On a tenth the teacher adds "
        f"{lead('MHCA, no teacher', 10)} points.** It adds {lead('MHCA, no teacher', 25)} on a quarter and "
        f"{lead('MHCA, no teacher', 50)} on half.",
        above("MHCA, no teacher", 10, 25) and no_difference("MHCA, no teacher", 50, 100),
    )
    yield (
        f"on all images DearKD leads DeiT⚗ by {lead('DeiT-Ti distilled', 100)}, about as much as it leads DeiT. "
        f"Neither label "
        "distillation alone nor the second stage shows a gain",
        verdict(BIG, "C02") == "fails" and verdict(BIG, "C06") == "within noise",
    )
    yield f"* {counted(BIG)} ([the claims]", True
    yield f"After correction for the number of claims {holm(BIG)}. What fails: {failing(BIG)}.", True
    yield (
        f"At 480 epochs (*long*) DeiT has {mean('table2', 'DeiT-Ti, long', scale=BIG, fraction=10)} on a tenth and "
        f"{mean('table2', 'DeiT-Ti, long', scale=BIG, fraction=100)} on all images, DearKD "
        f"{mean('table2', 'DearKD-Ti, long', scale=BIG, fraction=10)} and "
        f"{mean('table2', 'DearKD-Ti, long', scale=BIG, fraction=100)}. DearKD at 240 epochs leads the long DeiT by "
        f"{lead('DeiT-Ti, long', 10)} and {lead('DeiT-Ti, long', 100)}.",
        above("DeiT-Ti, long", 10, 100) and plan(BIG).scale.long[0] == 480 and plan(BIG).scale.training.epochs == 240,
    )
    fake, dreamt = "distilled, DF-DearKD", "distilled, DeepInversion"
    delta = cell("table5", fake, "delta", BIG, student="Ti")
    yield (
        f"A DearKD-Ti that has seen only DF-DearKD's {plan(BIG).sources['df_dearkd'].recipe.made()} images reaches "
        f"{free(fake, 'Ti')}, {-delta.mean:.1f} points below DeiT-Ti on real digits. In the paper it is "
        f"{-delta.paper:.1f} below.",
        verdict(BIG, "C32") in ("fails", "one seed"),
    )
    yield (
        f"DeepInversion has {free(dreamt, 'Ti')} and ADI {free('distilled, ADI', 'Ti')}. In the paper DF-DearKD leads "
        f"DeepInversion by {paper('table5', fake, student='Ti', over=dreamt)}.",
        verdict(BIG, "C33") != "holds",
    )
    yield f"Half of the real images teach more: {free('distilled, half of them', 'Ti')}.", True
    yield (
        f"LPIPS of real digits is {lpips('real images')} and of synthetic ones {lpips_made()}, although these teach "
        f"less. After a slight blur it is {lpips('real images', 'lpips_blurred')} and {lpips_made('lpips_blurred')}.",
        all(lpips("real images", m) < lpips_made(m) for m in ("lpips", "lpips_blurred")),
    )


def converged():
    """docs/results.md on the converged scale."""
    dei, distilled = "DeiT-Ti", "DeiT-Ti distilled"

    def gap(row, *shares):
        return ", ".join(paper("table2", row, "gap", fraction=share) for share in shares)

    yield f"{counted(BIG)}. After Holm's correction for the number of claims {holm(BIG)}.", True
    yield (
        f"| DearKD beats DeiT on all images (+ {gap(dei, 100)}) | {lead(dei, 100, '+ ')} |",
        above(dei, 100),
    )
    yield (
        f"| DearKD beats DeiT on 50, 25 and 10 % (+ {gap(dei, 50, 25, 10)}) | {lead(dei, 50, '+ ')}, {lead(dei, 25)}, "
        f"{lead(dei, 10)} |",
        above(dei, 50, 25, 10),
    )
    yield (
        "it is larger on a tenth than on all images: their intervals do not overlap. 25 and 50 % cannot be told "
        "apart, so the "
        "claim as a whole is within noise |",
        leads(BIG)[dei, 10][1] > leads(BIG)[dei, 100][2]
        and verdict(BIG, "C12") == "within noise"
        and "25" in claims(BIG).loc["C12", "decided_by"],
    )
    yield (
        f"DearKD at 240 epochs leads DeiT at 480 by {lead('DeiT-Ti, long', 10)} on a tenth and by "
        f"{lead('DeiT-Ti, long', 100)} on all images. At 480 epochs DearKD has "
        f"{t2('DearKD-Ti, long', 10, BIG, True)} and {t2('DearKD-Ti, long', 100, BIG, True)}, DeiT "
        f"{t2('DeiT-Ti, long', 10, BIG, True)} and {t2('DeiT-Ti, long', 100, BIG, True)} |",
        above("DeiT-Ti, long", 10, 100),
    )
    yield (
        f"| DearKD on half of the images beats DeiT on all (+ {claims(BIG).loc['C09', 'paper_margin']:.1f}) | "
        f"{margin('C09', '+ ')}. On a quarter the two cannot be told apart |",
        verdict(BIG, "C09") == "holds" and saved("DeiT-Ti", "; on 25 % the two cannot be told apart"),
    )
    yield (
        f"| DearKD beats DeiT⚗ on all images (+ {gap(distilled, 100)}) and on a tenth (+ {gap(distilled, 10)}) | "
        f"{lead(distilled, 100, '+ ')} and {lead(distilled, 10)} |",
        above(distilled, 10, 100),
    )
    yield (
        f"| the teacher adds to MHCA ({paper('table1', 'DearKD-Ti')} against {paper('table1', '+ MHCA')}) | "
        + ", ".join(
            f"{lead('MHCA, no teacher', f)} on {words}"
            for f, words in {10: "a tenth", 25: "a quarter", 50: "half", 100: "all images"}.items()
        )
        + ": only where images are few |",
        above("MHCA, no teacher", 10, 25) and no_difference("MHCA, no teacher", 50, 100),
    )
    yield (
        f"| label distillation alone helps (+ {gain('+ distill')}) | "
        f"{t1('baseline')} → {t1('+ distill')}: not shown. The interval excludes a gain of one point |",
        verdict(BIG, "C02") == "fails" and claims(BIG).loc["C02", "low"] < -1 < claims(BIG).loc["C02", "high"],
    )
    yield (
        f"| two stages help (+ {claims(BIG).loc['C06', 'paper_margin']:.1f}) | {margin('C06', '+ ')}: not shown |",
        verdict(BIG, "C06") == "within noise",
    )
    near, far = at_end(BIG, "DearKD-Ti", 1, 2), at_end(BIG, "DeiT-Ti", 1, 2, 3)
    yield (
        f"| {near[0]:.2f} and {near[1]:.2f} patches against {far[0]:.2f} to {far[-1]:.2f} in DeiT: holds |",
        near[1] < far[0],
    )
    yield "| by less than 0.001 patches on average: not shown |", 0 <= grown(BIG, 1, 2) < 0.001
    real, fake = "scratch, real images", "distilled, DF-DearKD"
    below = {size: cell("table5", fake, "delta", BIG, student=size) for size in ("Ti", "S")}
    yield (
        f"| without real images DF-DearKD comes near DeiT trained on them (− {-below['Ti'].paper:.1f} for Ti, "
        f"− {-below['S'].paper:.1f} for S) | Ti {free(fake, 'Ti')} against {free(real, 'Ti')}, S {free(fake, 'S')} "
        f"against {free(real, 'S')}: {verdict(BIG, 'C32')} |",
        True,
    )
    three = {size: [free(f"distilled, {row}", size) for row in MADE] for size in ("Ti", "S")}
    yield (
        "| students learn more from DF-DearKD's images than from ADI's, and from those more than from DeepInversion's "
        f"| DeepInversion, ADI, DF-DearKD: Ti {', '.join(three['Ti'])}; S {', '.join(three['S'])}: "
        f"{verdict(BIG, 'C31')} |",
        True,
    )
    dreamt, adi = (f"distilled, {row}" for row in MADE[:2])
    yield (
        f"| with Ti they lead DeepInversion by {paper('table5', fake, student='Ti', over=dreamt)} (DF-DearKD) and "
        f"{paper('table5', adi, student='Ti', over=dreamt)} (ADI) | {margin('C33', '+ ', 8)} and "
        f"{margin('C34', '+ ', 7.35)}: {verdict(BIG, 'C33', 'C34')} |",
        claims(BIG).loc["C34", "decided_by"].startswith("-0.05 <"),
    )
    half = "distilled, half of them"
    yield (
        f"| as many real images teach more | {free(half, 'Ti')} (Ti) and {free(half, 'S')} (S) with half of the real "
        f"images: {verdict(BIG, 'C35')} |",
        True,
    )
    yield (
        "| real images are the most diverse, then DF-DearKD's, ADI's and DeepInversion's (LPIPS) | "
        f"{', '.join(lpips(row) for row in ('real images', *reversed(MADE)))} in this order: {verdict(BIG, 'C37')} |",
        True,
    )
    apart = {row: cell("table6", row, "easy_positive", BIG) for row in MADE}
    yield (
        f"| in DF-DearKD's images easiest positives are further apart | distance {apart['DF-DearKD'].mean:.2f} against "
        f"{apart['DeepInversion'].mean:.2f} (DeepInversion) and {apart['ADI'].mean:.2f} (ADI): holds |",
        apart["DF-DearKD"].mean == max(c.mean for c in apart.values()),
    )
    yield "Tables 3 and 4 are not complete", not whole(BIG, 3) and not whole(BIG, 4)


def digits():
    """docs/results.md on the scale of 40 epochs. tests/report/test_claims.py compares the verdicts of these rows."""
    dear = "DearKD-Ti"
    yield f"{counted(SMALL)}. After Holm's correction for the number of claims {holm(SMALL)}.", True
    yield "on which 4 claims fail.", (claims(SMALL)["paper_verdict"] == "fails").sum() == 4
    yield (
        f"(+ {cell('table3', 'DearKD-Ti-1000').paper - cell('table3', dear).paper:.1f} for Ti) | {t2(dear, 100)} → "
        f"{spread('table3', 'DearKD-Ti-1000')} |",
        True,
    )
    sizes = [
        ", ".join(mean("table3", f"{family}-{size}") for size in ("Ti", "S", "B")) for family in ("DearKD", "DeiT")
    ]
    ours = dict(zip(("Ti", "S", "B"), sizes[0].split(", "), strict=True))
    yield (
        f"| {', '.join(f'{size} {value}' for size, value in ours.items())} against DeiT {sizes[1]}, T2T-ViT "
        f"{spread('table3', 'T2T-ViT-7')}, ViT {spread('table3', 'ViT-B/16')}, Swin {spread('table3', 'Swin-T')} |",
        True,
    )
    yield (
        f"| {t2(dear, 100)} against {spread('table3', 'ResNet-18')}. EfficientNet has "
        f"{spread('table3', 'EffiNet-B0')}, RegNetY "
        f"{spread('table3', 'RegNetY-4GF')} |",
        True,
    )
    speed = [
        f"{size} {mean('table3', f'DearKD-{size}', 'ratio_dense', places=2)} and "
        f"{mean('table3', f'DearKD-{size}', 'ratio', places=2)}"
        for size in ("Ti", "S", "B")
    ]
    yield (
        f"with the bias as a matrix and folded: {', '.join(speed)}. The paper's Table 3 has "
        f"{claims(SMALL).loc['C25', 'paper_margin'] / 100 + 0.9:.2f} for Ti |",
        True,
    )
    tasks = ("upside_down", "parity", "textured", "left_of_two")
    tuned = {
        row: [cell("table4", row, target=task).mean for task in tasks]
        for row in ("DeiT-B", "DeiT-B-distilled", *(f"DearKD-{s}" for s in ours))
    }

    def ahead(more, less):
        found = sorted(a - b for a, b in zip(tuned[more], tuned[less], strict=True))
        return f"{found[0]:.0f} to {found[-1]:.0f}"

    yield (
        f"| by {ahead('DearKD-B', 'DeiT-B')} points on all four targets. It beats DeiT-B⚗ too, and DearKD-Ti "
        f"beats DeiT-B by "
        f"{ahead('DearKD-Ti', 'DeiT-B')}.",
        min(a - b for a, b in zip(tuned["DearKD-B"], tuned["DeiT-B-distilled"], strict=True)) > 0,
    )
    last = [f"{a - b:z.1f}".replace("-", "− ") for a, b in zip(tuned["DearKD-B"], tuned["DearKD-S"], strict=True)]
    yield (
        f"| S is above Ti by {ahead('DearKD-S', 'DearKD-Ti')} points. B minus S is {', '.join(last[:3])} and "
        f"{last[3]} |",
        True,
    )


def remarks():
    """docs/results.md below its tables."""
    teacher = record.read(Path("results/digits/teachers/main.json"))
    yield f"The teacher is right on {teacher['top1']:.1f} % of the validation images", teacher["gate"] == "validation"
    made = plan(BIG).sources["df_dearkd"].recipe.made()
    real = record.read(Path("results/converged/subsets/main/data.json"))["images"]["train-50"]
    below = [
        max(cell("table5", f"distilled, {row}", scale=BIG, student=size).mean for row in MADE) for size in ("Ti", "S")
    ]
    half = [cell("table5", "distilled, half of them", scale=BIG, student=size).mean for size in ("Ti", "S")]
    yield (
        f"{made} synthetic images teach less than {real} real ones, whichever method makes them.",
        below[0] < half[0] and below[1] < half[1],
    )
    found = {
        name: record.read(Path(f"results/lite0-cpu/images/{name}/seed0/shard-0000.json"))
        for name in ("deepinversion", "df_dearkd")
    }
    yield (
        f"The CNN recognises {found['deepinversion']['teacher_accuracy']:.0f} % of DeepInversion's "
        f"{found['deepinversion']['images']} images and {found['df_dearkd']['teacher_accuracy']:.0f} % of DF-DearKD's.",
        all(round(one["seconds"] / 60) == 5 for one in found.values()),
    )
    yield f"T2T-ViT has {spread('table3', 'T2T-ViT-7')}.", True
    wrong = "noisy-digits"
    yield (
        f"Label distillation alone raises the baseline from {t1('baseline', wrong, False)} to "
        f"{t1('+ distill', wrong, False)}. "
        f"Hidden distillation raises it further to {t1('+ hidden + distill', wrong, False)}. MHCA alone has "
        f"{t1('+ MHCA', wrong, False)} and all three together, as DearKD, {t1('DearKD-Ti', wrong, False)}.",
        verdict(wrong, "C02") == "holds" and verdict(wrong, "C03", "C06") == "within noise",
    )


def elsewhere():
    """docs/architecture.md: the number whose way the page follows."""
    line = cell("table2", "DearKD-Ti", fraction=100)
    yield f"on all images, {line.mean:.1f} ± {line.sd:.1f} % ({line.n} seeds), in", True


def rivals():
    found = unfinished.counts(plan(BIG), "rivals")
    yield (
        "Only the rows that Table 2 shows too have been run.",
        {label for label, (lacking, planned) in found.items() if lacking < planned}
        <= {row.label for row in plan(BIG).tables["table2"].rows},
    )


SAID = {
    "README.md": (readme,),
    "docs/results.md": (converged, digits, remarks),
    "docs/convergence.md": (searches.convergence,),
    "docs/unshown.md": (searches.unshown,),
    "docs/rivals.md": (rivals,),
    "docs/architecture.md": (elsewhere,),
}
CASES = [(page, *one) for page, parts in SAID.items() for part in parts for one in part()]


def one_line(text):
    return " ".join(re.sub(r"^\* ", "", text, flags=re.MULTILINE).split())


@pytest.mark.parametrize("page, sentence, true", CASES)
def test_a_page_says_what_the_records_say(page, sentence, true):
    assert one_line(sentence) in one_line(Path(page).read_text()), f"{page} should say: {sentence}"
    assert true, f"{page}: no longer true, whatever its numbers: {sentence}"


SETTINGS = {
    "README.md": {"2204.12997", "2.0", "10.1109", "52688.2022", "3.11", "0.2", "40.5"},
    "docs/results.md": {"0.9", "0.1"},
    "docs/convergence.md": {"0.216", "2.5", "1.5", "0.3"},
    "docs/unshown.md": {"0.5", "1.5", "0.01", "0.05", "0.00", "7.4"},
}
"""Decimals of a page that are settings, expectations or the paper's."""


COMPARED = re.compile(r"^\| row \| .*\n(\|.*\n)+", re.MULTILINE)
"""Tables that tests/benchmarks/test_convergence.py compares."""


@pytest.mark.parametrize("page", SETTINGS)
def test_no_number_of_a_page_is_typed_by_hand(page):
    """What has a decimal point is in a sentence of `SAID`, in a table that a test compares, or in no result."""
    text = COMPARED.sub("", Path(page).read_text())
    text = re.sub(r"<!-- .*? -->.*?<!-- end -->|```.*?```", " ", text, flags=re.DOTALL)
    left = without_links(text)
    for _, sentence, _ in (one for one in CASES if one[0] == page):
        left = left.replace(without_links(sentence), " ")
    assert {*re.findall(r"\d+\.\d+(?!e)", left)} <= SETTINGS[page]


def without_links(text):
    """On one line, without the targets of links and without code."""
    return one_line(re.sub(r"`[^`]*`|\]\([^)]*\)", " ", text))
