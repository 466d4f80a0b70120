"""Draws docs/how_it_works.svg: how a picture and a text become an answer, with the modules that do it.

python tools/draw_architecture.py docs/how_it_works.svg
"""

import argparse

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

INK, DIM = "#1f2933", "#52606d"
PICTURE, VISION, TEXT, MIX = "#e4ecf7", "#cfe3d6", "#f7e9cf", "#f4d4dd"
# name, what it gives, module; left, bottom, width, height; colour
BOXES = {
    "picture": ("Picture", "any size", "data/image.py", (0.1, 3.5, 1.5, 1.2), PICTURE),
    "views": ("Views", "overview + crops\n(B·5, S, S, 3)", "model/views.py", (2.1, 3.5, 1.8, 1.2), PICTURE),
    "clip": ("CLIP", "ViT, language", "model/encoders/clip.py", (4.4, 5.6, 2.2, 0.85), VISION),
    "convnext": ("ConvNeXt", "convolutions", "model/encoders/convnext.py", (4.4, 4.55, 2.2, 0.85), VISION),
    "dinov2": ("DINOv2", "ViT, self-supervised", "model/encoders/dinov2.py", (4.4, 3.5, 2.2, 0.85), VISION),
    "qformer": ("Q-Former", "32 queries, BLIP-2's ViT", "model/encoders/qformer.py", (4.4, 2.45, 2.2, 0.85), VISION),
    "mix": (
        "Embedding mix",
        "channels joined, projected;\ntags around each view",
        "model/embedding_mix.py",
        (7.1, 3.5, 2.2, 1.5),
        MIX,
    ),
    "text": ("Text", "question, earlier turns", "data/conversation.py", (2.1, 0.6, 1.8, 1.0), PICTURE),
    "tokens": ("Tokens", "BOS, then the words", "data/tokenizer.py", (4.4, 0.6, 2.2, 1.0), TEXT),
    "embedding": ("Word embeddings", "(B, T, D)", "model/decoder.py", (7.1, 0.6, 2.2, 1.0), TEXT),
    "decoder": (
        "LLaMA decoder",
        "BOS, picture, words:\none causal sequence",
        "model/decoder.py",
        (10.0, 2.0, 2.0, 1.9),
        TEXT,
    ),
    "answer": ("Answer", "words, boxes, points", "generate/engine.py", (12.6, 2.35, 1.7, 1.2), PICTURE),
}
ENCODERS = ("clip", "convnext", "dinov2", "qformer")
ARROWS = [
    ("picture", "views"),
    *(("views", encoder) for encoder in ENCODERS),
    *((encoder, "mix") for encoder in ENCODERS),
    ("mix", "decoder"),
    ("text", "tokens"),
    ("tokens", "embedding"),
    ("embedding", "decoder"),
    ("decoder", "answer"),
]
MIXES = (
    ("visual embeddings", "features of four encoders become one sequence: model/embedding_mix.py"),
    ("tasks", "data sets and instructions become one stream of batches: data/task_mix.py"),
    ("weights", "checkpoints of two domains become one, β·real + (1 − β)·synthetic: weight_mix/"),
)


def draw(path: str) -> None:
    plt.rcParams |= {"font.family": "DejaVu Sans", "svg.hashsalt": "sphinx_jax"}
    figure, axes = plt.subplots(figsize=(14.4, 8.2))
    axes.set(xlim=(0, 14.4), ylim=(-1.75, 6.9))
    axes.axis("off")
    for name, says, module, (x, y, width, height), colour in BOXES.values():
        style = "round,pad=0,rounding_size=0.1"
        axes.add_patch(FancyBboxPatch((x, y), width, height, style, facecolor=colour, edgecolor=INK, linewidth=1))
        middle, lines = x + width / 2, says.count("\n") + 1
        axes.text(middle, y + height - 0.2, name, ha="center", va="center", size=11, weight="bold", color=INK)
        axes.text(middle, y + height - 0.28 - 0.14 * lines, says, ha="center", va="center", size=8, color=INK)
        axes.text(middle, y + 0.13, module, ha="center", va="center", size=7, family="DejaVu Sans Mono", color=DIM)
    for start, end in ARROWS:
        (x, y, width, height), (x2, y2, _, height2) = BOXES[start][3], BOXES[end][3]
        arrow = FancyArrowPatch(
            (x + width + 0.03, y + height / 2),
            (x2 - 0.03, y2 + height2 / 2),
            arrowstyle="-|>",
            mutation_scale=11,
            color=DIM,
            linewidth=1.1,
        )
        axes.add_patch(arrow)
    axes.text(5.5, 6.6, "frozen encoders", ha="center", size=9, style="italic", color=DIM)
    axes.text(0.1, -0.35, "The three mixes", size=11, weight="bold", color=INK)
    for i, (name, says) in enumerate(MIXES):
        axes.text(0.1, -0.75 - 0.38 * i, name, size=9.5, weight="bold", color="#a01846")
        axes.text(2.1, -0.75 - 0.38 * i, says, size=9.5, color=INK)
    figure.savefig(
        path, bbox_inches="tight", facecolor="white", metadata={"Date": None} if path.endswith("svg") else {}
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", help="an .svg or .png file")
    draw(parser.parse_args().out)


if __name__ == "__main__":
    main()
