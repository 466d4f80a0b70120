"""Questions about texts, pages, charts and people: what their scenes have beyond things."""

from __future__ import annotations

import numpy as np

from sphinx_jax.data.playground.questions import (
    Ask,
    Asker,
    Turn,
    article,
    ask_colour,
    ask_grounded_caption,
    ask_rec,
    ask_reg,
    ask_relation,
    ask_short_caption,
    ask_where,
    listing,
    sentence,
)
from sphinx_jax.data.playground.scenes_page import BLOCKS
from sphinx_jax.data.playground.scenes_people import arms_raised
from sphinx_jax.data.playground.scenes_text import WORDS
from sphinx_jax.data.playground.things import COLOURS, plural

# --- texts


def ask_text_detection(asker: Asker) -> Turn:
    return asker.turn("text_detection", [asker.relative(region.box) for region in asker.scene.texts])


def ask_text_spotting(asker: Asker) -> Turn:
    return asker.turn("text_spotting", [asker.relative(region) for region in asker.scene.texts])


def ask_reading(asker: Asker) -> Turn:
    texts = asker.scene.texts
    row = int(asker.rng.integers(len(texts)))
    colour = asker.scene.things[row].colour
    questions = [f"What does the {colour} text say?"]
    if len(texts) == 1:
        questions = ["What does the text say?"]
    elif row in (0, len(texts) - 1):
        questions.append(f"What does the {'bottom' if row else 'top'} text say?")
    return asker.vqa("read", asker.choose(questions), texts[row].text)


def ask_text_count(asker: Asker) -> Turn:
    return asker.vqa("count", "How many texts are there?", str(len(asker.scene.texts)))


def ask_text_yes_no(asker: Asker) -> Turn:
    truth = bool(asker.rng.random() < 0.5)
    text = asker.choose([region.text for region in asker.scene.texts])
    there = {region.text for region in asker.scene.texts}
    asked = text
    while not truth and asked in there:
        if text.isdigit():
            place = int(asker.rng.integers(len(text)))
            asked = text[:place] + str(asker.rng.integers(10)) + text[place + 1 :]
        else:
            asked = asker.choose([word for word in WORDS if len(word) == len(text)])
    return asker.vqa("yes_no", f"Does a text say {asked}?", "yes" if truth else "no")


def text_plan(rng: np.random.Generator) -> list[Ask]:
    plan = [ask_text_detection, ask_text_spotting, ask_reading, ask_reading, ask_rec, ask_colour]
    others = [ask_text_count, ask_text_yes_no, ask_where, ask_reg, ask_reading, ask_grounded_caption]
    return plan + [others[i] for i in rng.permutation(len(others))[:4]]


# --- pages


def ask_layout(asker: Asker) -> Turn:
    return asker.turn("layout", [asker.relative(region) for region in asker.scene.layout])


def ask_block_count(asker: Asker) -> Turn:
    kinds = [thing.name for thing in asker.things]
    if asker.rng.random() < 0.4:
        return asker.vqa("count", "How many blocks are there?", str(len(kinds)))
    kind = asker.choose(kinds)
    return asker.vqa("count", f"How many {plural(kind)} are there?", str(kinds.count(kind)))


def ask_block_what(asker: Asker) -> Turn:
    """What is first or last on the page, in reading order."""
    last = asker.rng.random() < 0.5
    region = asker.scene.layout[-1 if last else 0]
    return asker.vqa("what", f"What comes {'last' if last else 'first'} on the page?", region.kind)


def ask_block_yes_no(asker: Asker) -> Turn | None:
    truth = bool(asker.rng.random() < 0.5)
    there = {thing.name for thing in asker.things}
    kinds = [kind for kind in BLOCKS if (kind in there) == truth]
    if not kinds:
        return None
    return asker.vqa("yes_no", f"Is there {article(asker.choose(kinds))}?", "yes" if truth else "no")


def ask_block_detection(asker: Asker) -> Turn:
    kind = asker.choose(asker.scene.layout).kind
    boxes = [asker.relative(region.box) for region in asker.scene.layout if region.kind == kind]
    return asker.turn("detection", boxes, phrase=plural(kind))


def ask_page_caption(asker: Asker) -> Turn:
    kinds = [region.kind for region in asker.scene.layout]
    counts = {kind: kinds.count(kind) for kind in kinds}
    blocks = [article(kind) if count == 1 else f"{count} {plural(kind)}" for kind, count in counts.items()]
    return asker.turn("short_caption", sentence(f"a page with {listing(blocks)}"))


def page_plan(rng: np.random.Generator) -> list[Ask]:
    plan = [
        ask_layout,
        ask_block_count,
        ask_block_what,
        ask_block_detection,
        ask_rec,
        ask_page_caption,
        ask_where,
    ]
    return [*plan, ask_block_count, ask_block_what, ask_reg] + ([ask_block_yes_no] if rng.random() < 0.7 else [])


# --- charts


def ask_table(asker: Asker) -> Turn:
    return asker.turn("chart", asker.scene.bars)


def ask_bar_value(asker: Asker) -> Turn:
    name, value = asker.choose(asker.scene.bars)
    return asker.vqa("read", f"What is the value of bar {name}?", str(value))


def ask_bar_extreme(asker: Asker) -> Turn | None:
    values = [value for _, value in asker.scene.bars]
    highest = asker.rng.random() < 0.5
    extreme = max(values) if highest else min(values)
    if values.count(extreme) > 1:
        return None
    name = asker.scene.bars[values.index(extreme)][0]
    return asker.vqa("what", f"Which bar is the {'highest' if highest else 'lowest'}?", name)


def ask_bar_count(asker: Asker) -> Turn:
    return asker.vqa("count", "How many bars are there?", str(len(asker.scene.bars)))


def ask_bar_yes_no(asker: Asker) -> Turn | None:
    first, second = (asker.scene.bars[i] for i in asker.rng.permutation(len(asker.scene.bars))[:2])
    if first[1] == second[1]:
        return None
    question = f"Is bar {first[0]} higher than bar {second[0]}?"
    return asker.vqa("yes_no", question, "yes" if first[1] > second[1] else "no")


def ask_bar_detection(asker: Asker) -> Turn:
    return asker.turn("detection", [asker.relative(thing.box) for thing in asker.things], phrase="bars")


def ask_chart_caption(asker: Asker) -> Turn:
    bars = [article(f"{thing.colour} bar") for thing in asker.things]
    return asker.turn("short_caption", sentence(f"a chart with {listing(bars)}"))


def chart_plan(rng: np.random.Generator) -> list[Ask]:
    plan = [ask_table, ask_bar_value, ask_bar_value, ask_bar_extreme, ask_rec, ask_colour, ask_chart_caption]
    others = [ask_bar_count, ask_bar_yes_no, ask_bar_detection, ask_reg, ask_bar_extreme]
    return plan + [others[i] for i in rng.permutation(len(others))[:3]]


# --- people


def ask_pose(asker: Asker) -> Turn:
    person = asker.choose(asker.scene.people)
    return asker.turn("pose", asker.relative(person.pose), box=asker.relative(person.box))


def ask_people_detection(asker: Asker) -> Turn:
    return asker.turn("detection", [asker.relative(thing.box) for thing in asker.things], phrase="people")


def ask_people_count(asker: Asker) -> Turn:
    return asker.vqa("count", "How many people are there?", str(len(asker.scene.people)))


def ask_arms(asker: Asker) -> Turn:
    person = asker.choose(asker.scene.people)
    who = "person" if len(asker.scene.people) == 1 else f"{person.colour} person"
    return asker.vqa("count", f"How many arms does the {who} raise?", str(arms_raised(person)))


def ask_person_colour(asker: Asker) -> Turn:
    people = asker.things
    if len(people) == 1:
        return asker.vqa("colour", "What colour is the person?", people[0].colour)
    side = int(asker.rng.integers(2))
    return asker.vqa("colour", f"What colour is the person on the {('left', 'right')[side]}?", people[side].colour)


def ask_person_yes_no(asker: Asker) -> Turn:
    truth = bool(asker.rng.random() < 0.5)
    there = {thing.colour for thing in asker.things}
    colour = asker.choose([name for name in COLOURS if (name in there) == truth])
    return asker.vqa("yes_no", f"Is there {article(f'{colour} person')}?", "yes" if truth else "no")


def person_plan(rng: np.random.Generator) -> list[Ask]:
    plan = [ask_pose, ask_pose, ask_people_detection, ask_rec, ask_arms, ask_person_colour]
    others = [
        ask_people_count,
        ask_person_yes_no,
        ask_short_caption,
        ask_grounded_caption,
        ask_reg,
        ask_relation,
    ]
    return plan + [others[i] for i in rng.permutation(len(others))[:4]]
