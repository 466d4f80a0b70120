"""The style sheet of a report: light and dark, wide and narrow."""

import html

from sphinx_jax.report.drawing import EXPECTED, PREDICTED
from sphinx_jax.report.plots import colours


def style_sheet() -> str:
    """CSS in the colours of the figures."""
    light, dark = colours(), colours(dark=True)
    return _TEMPLATE % {
        "real": light["real"],
        "synthetic": light["synthetic"],
        "ground": light["ground"],
        "real_dark": dark["real"],
        "synthetic_dark": dark["synthetic"],
        "ground_dark": dark["ground"],
        "predicted": PREDICTED,
        "expected": EXPECTED,
    }


def whole_page(title: str, body: str, style: str = "", script: str = "") -> str:
    """HTML that needs no file beside it."""
    title = html.escape(title)
    script = script and f"<script>{script}</script>"
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{title}</title><style>{style_sheet()}{style}</style>"
        f"<body><main><h1>{title}</h1>{body}</main>{script}</body></html>"
    )


_TEMPLATE = """
:root { color-scheme: light dark; --text: #1d2329; --muted: #66707a; --page: #f5f6f8; --card: %(ground)s;
  --line: #dfe3e8; --bad: #b3001b; --good: #00785a; --partly: #8a6100; --real: %(real)s;
  --synthetic: %(synthetic)s; --said: #c4006b; --expected: #00785a; --picture: #eef0f2; }
@media (prefers-color-scheme: dark) { :root { --text: #e3e6ea; --muted: #98a2ad; --page: #121519;
  --card: %(ground_dark)s; --line: #343b44; --bad: #ff7b86; --good: #3fd6a8; --partly: #e2b44e;
  --real: %(real_dark)s; --synthetic: %(synthetic_dark)s; --said: #ff6bb5; --expected: #3fd6a8;
  --picture: #0d0f12; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 24px 16px 64px; }
h1 { margin: 0 0 8px; font-size: 1.9rem; line-height: 1.2; }
h2 { margin: 0 0 8px; font-size: 1.25rem; }
.lead { margin: 0 0 20px; color: var(--muted); max-width: 75ch; }
section { margin-top: 20px; padding: 20px; background: var(--card); border: 1px solid var(--line);
  border-radius: 10px; }
section > p { max-width: 80ch; margin: 0 0 12px; }
.headlines { display: grid; grid-template-columns: repeat(auto-fit, minmax(250px, 1fr)); gap: 16px; }
.headline { padding: 16px 20px; background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
.headline h3 { margin: 0; font-size: .9rem; letter-spacing: .03em; }
.headline h3 small { color: var(--muted); font-weight: 400; letter-spacing: 0; margin-left: .3em; }
.headline p { margin: 0; font-size: .9rem; }
.headline .number { font-size: 2.6rem; line-height: 1.25; font-weight: 700; }
.headline span + span { margin-left: 1em; }
.wide { overflow-x: auto; }
.chart { display: block; width: 100%%; max-width: 740px; margin: 0 auto; }
table { border-collapse: collapse; margin: 4px 0 12px; font-size: .88rem;
  font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--muted); padding-bottom: 4px; }
th, td { padding: 5px 9px; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
tr > :first-child { text-align: left; }
thead th { font-weight: 600; color: var(--muted); vertical-align: bottom; }
tbody th { font-weight: 500; }
.scores { width: 100%%; }
.scores .metric { text-align: left; color: var(--muted); }
.scores thead tr:last-child th { text-align: right; font-weight: 400; }
.scores thead tr:first-child .group { text-align: left; }
.scores tbody th { position: sticky; left: 0; background: var(--card); }
.group { border-left: 1px solid var(--line); }
.score { font-weight: 700; }
.kind th { padding-left: 26px; font-weight: 400; }
.chosen > * { font-weight: 700; }
.muted { color: var(--muted); }
.real { color: var(--real); } .synthetic { color: var(--synthetic); }
.good { color: var(--good); } .bad { color: var(--bad); } .partly { color: var(--partly); }
.legend { display: flex; flex-wrap: wrap; gap: 4px 24px; font-size: .88rem; }
.legend i { display: inline-block; width: 34px; margin-right: 8px; vertical-align: middle;
  border-top: 3px solid; }
.legend .said { border-color: %(predicted)s; }
.legend .expected { border-top-style: dashed; border-color: %(expected)s; }
.legend .asked { border-top-width: 2px; border-color: #999; }
.samples { display: grid; grid-template-columns: repeat(auto-fill, minmax(230px, 1fr)); gap: 22px 18px; }
article { min-width: 0; font-size: .9rem; }
.picture { display: flex; aspect-ratio: 1; align-items: center; justify-content: center;
  background: var(--picture); border-radius: 6px; overflow: hidden; }
.picture img { max-width: 100%%; max-height: 100%%; width: 100%%; height: 100%%; object-fit: contain; }
.tags { display: flex; gap: .4em; margin: 6px 0 2px; font-size: .82rem; }
.tags b { margin-left: auto; white-space: nowrap; }
.question { margin: 0 0 4px; font-weight: 600; white-space: pre-line; overflow-wrap: anywhere;
  line-height: 1.35; }
dl { display: grid; grid-template-columns: auto 1fr; gap: 2px 10px; margin: 0; }
dt { color: var(--muted); }
dd { margin: 0; min-width: 0; max-height: 9.5em; overflow: auto; white-space: pre-line;
  overflow-wrap: anywhere; line-height: 1.35; }
dd.said { color: var(--said); } dd.expected { color: var(--expected); }
details { margin: 0 0 12px; } summary { cursor: pointer; }
pre { overflow-x: auto; padding: 12px; font-size: .82rem; background: var(--page); border-radius: 6px; }
@media (max-width: 700px) {
  main { padding: 16px 8px 40px; }
  section { padding: 14px 12px; }
  th, td { padding: 5px 6px; font-size: .82rem; }
  .kind th { padding-left: 16px; }
  /* The scores are what a small screen has room for. */
  .scores .detail { display: none; }
  .samples { grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 18px 12px; }
  dl { display: block; }
}
@media print { section { break-inside: avoid-page; border: 0; padding: 8px 0; } }
"""
