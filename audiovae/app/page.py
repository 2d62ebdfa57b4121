"""The page: its tabs, its look, and nothing from elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from audiovae import saved
from audiovae.app import compare, denoise, inside, live, separate

TITLE = "audiovae"
_SECONDS_KEPT = 3600  # of sounds that were made or dropped, while the page runs
_TABS = {
    "Denoise": denoise.add_tab,
    "Look inside": inside.add_tab,
    "Separate": separate.add_tab,
    "Compare": compare.add_tab,
    "Live": live.add_tab,
}

# The colours of the reports, whose pictures name them by these variables.
CSS = """
:root { --first: #0072b2; --second: #d55e00 } .dark { --first: #56b4e9; --second: #e69f00 }
.gradio-container { max-width: 1240px !important }
.picture svg { display: block; width: 100%; height: auto } .picture svg text { fill: currentColor }
.scale { display: flex; flex-wrap: wrap; align-items: center; gap: 0 .5rem; font-size: .9rem; margin: .3rem 0 }
.scale span { white-space: nowrap } .scale i { flex: none; width: 8rem; height: .8rem }
.magma { background: linear-gradient(90deg, #000004, #3b0f70, #8c2981, #de4968, #fe9f6d, #fcfdbf) }
.live { display: flex; flex-wrap: wrap; gap: .6rem 1rem; align-items: center }
.live button { border-radius: 6px; padding: .5rem 1.6rem; font-weight: 600; cursor: pointer }
.live #live-start { background: var(--button-primary-background-fill); color: var(--button-primary-text-color) }
.live #live-stop { background: var(--button-secondary-background-fill) } .live button:disabled { opacity: .4 }
.live select { padding: .4rem; border: 1px solid var(--border-color-primary); border-radius: 6px;
background: var(--input-background-fill); color: inherit } .live p { flex-basis: 100%; margin: 0 }
@media (max-width: 500px) { .tab-container button { padding: 0 .45rem; font-size: .82rem } }
.click svg { cursor: crosshair } .buttons { gap: .4rem }
"""


def build(folder: Path, model: str | None = None) -> Any:
    """The tabs as one gradio app, which nobody serves yet.

    Args:
        folder: of the sounds that are made; they are deleted after an hour.
        model: a prior of one's own, first among those to choose from.
    """
    import gradio as gr

    models = [*([model] if model else []), *(name for name in saved.shipped_names() if name != model)]
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(60, _SECONDS_KEPT)) as page:
        gr.Markdown(
            "# audiovae\nPriors of clean speech, learnt from recordings alone. All that happens here happens on this "
            "machine: nothing is sent anywhere."
        )
        with gr.Tabs():
            for name, add_tab in _TABS.items():
                with gr.Tab(name):
                    add_tab(folder, models)
    return page


def theme() -> Any:
    """Fonts of the reader's own."""
    import gradio as gr

    return gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
