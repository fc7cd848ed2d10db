"""`python -m deploy.gradio.app`: the app at http://127.0.0.1:7860, or where GRADIO_SERVER_NAME and _PORT say.

WHISPER_SERVER_URL is the address of the server, http://127.0.0.1:8000 by default; WHISPER_API_KEY is its key, if it
asks for one.
"""

from __future__ import annotations

import html
import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import gradio as gr
from gradio.events import api

from .transcription import Server, Transcript, TranscriptionError

TITLE = "Whisper"
INTRODUCTION = (
    f"# {TITLE}\nSpeech to text for recordings in any common format. Programs can use it, too: see *Use via API* at the end of the page."
)
FONTS = ("system-ui", "sans-serif")
RECORDINGS: tuple[tuple[str, Literal["microphone", "upload"], str, str], ...] = (
    ("Microphone", "microphone", "Recording", "predict"),
    ("File", "upload", "Audio file", "predict_1"),
)
"""The tabs of recordings: their name, where the recording comes from, its label and the end point."""
CONCURRENT = 16
"""Transcriptions at once. The server batches their windows."""
NO_RECORDING = "There is no recording: record or choose one first."
NO_URL = "There is no URL: paste the address of a recording first."
_BAR = gr.Progress()
"""As the default of an argument: Gradio puts the progress of the call in its place."""


def build(server: Server) -> gr.Blocks:
    """The app. Its end points are /transcribe and /transcribe_url, and those of Whisper JAX's demo, with the same arguments

    and results: /predict of the microphone, /predict_1 of files, /predict_2 of URLs.
    """

    def transcribe(
        inputs: str | None, task: str = "transcribe", return_timestamps: bool = False, progress: gr.Progress = _BAR
    ) -> tuple[str, str]:
        """The text of a recording, and the seconds that the transcription took."""
        if not inputs:
            raise gr.Error(NO_RECORDING, print_exception=False)
        transcript = _guarded(lambda: server.transcribe(recording=Path(inputs), task=task, on_progress=_report(progress)))
        return _text(transcript, return_timestamps), f"{transcript.seconds:.2f}"

    def transcribe_url(
        url: str, task: str = "transcribe", return_timestamps: bool = False, progress: gr.Progress = _BAR
    ) -> tuple[str, str, str]:
        """A link to the URL, the text of its recording, and the seconds that fetching and transcribing took."""
        url = url.strip()
        if not url:
            raise gr.Error(NO_URL, print_exception=False)
        transcript = _guarded(lambda: server.transcribe(url=url, task=task, on_progress=_report(progress)))
        return _link(url), _text(transcript, return_timestamps), f"{transcript.seconds:.2f}"

    def transcribe_file(recording: gr.FileData, task: str = "transcribe", return_timestamps: bool = False) -> str:
        """The text of a recording."""
        return transcribe(recording["path"], task, return_timestamps)[0]  # type: ignore[index]  # Gradio passes a dictionary

    def transcribe_address(url: str, task: str = "transcribe", return_timestamps: bool = False) -> str:
        """The text of the recording at a URL, which the server fetches."""
        return transcribe_url(url, task, return_timestamps)[1]

    app = gr.Blocks(title=TITLE, analytics_enabled=False)
    with app:
        gr.Markdown(INTRODUCTION)
        for name, source, label, api_name in RECORDINGS:
            with gr.Tab(name):
                recording = gr.Audio(sources=[source], type="filepath", label=label, buttons=["download"])
                task, times, button = _options()
                text, seconds = _outputs()
                button.click(
                    transcribe,
                    [recording, task, times],
                    [text, seconds],
                    api_name=api_name,
                    concurrency_limit=CONCURRENT,
                    show_progress_on=text,
                )
        with gr.Tab("URL"):
            address = gr.Textbox(label="URL", placeholder="https://example.org/episode.mp3", max_lines=1)
            task, times, button = _options()
            link = gr.HTML(label="Source")
            text, seconds = _outputs()
            gr.on(
                [button.click, address.submit],
                transcribe_url,
                [address, task, times],
                [link, text, seconds],
                api_name="predict_2",
                concurrency_limit=CONCURRENT,
                show_progress_on=text,
            )
        api(transcribe_file, api_name="transcribe", concurrency_limit=CONCURRENT)
        api(transcribe_address, api_name="transcribe_url", concurrency_limit=CONCURRENT)
    return app


def _options() -> tuple[gr.Radio, gr.Checkbox, gr.Button]:
    with gr.Row():
        task = gr.Radio(["transcribe", "translate"], value="transcribe", label="Task", info="translate: into English")
        times = gr.Checkbox(label="Return timestamps")
    return task, times, gr.Button("Transcribe", variant="primary")


def _outputs() -> tuple[gr.Textbox, gr.Textbox]:
    text = gr.Textbox(label="Transcription", lines=8, max_lines=24, buttons=["copy"])
    return text, gr.Textbox(label="Transcription time (s)")


def _guarded(call: Callable[[], Transcript]) -> Transcript:
    """The transcript; what went wrong is shown to the user, and raised by gradio_client."""
    try:
        return call()
    except TranscriptionError as error:
        raise gr.Error(str(error), print_exception=False) from None


def _report(progress: gr.Progress) -> Callable[[float, float | None], None]:
    def report(seconds: float, duration: float | None) -> None:
        if duration:
            progress(seconds / duration, desc=f"{seconds:.0f} of {duration:.0f} s")
        else:
            progress(None, desc=f"{seconds:.0f} s")

    progress(None, desc="Sending the recording")
    return report


def _text(transcript: Transcript, return_timestamps: bool) -> str:
    return transcript.with_times() if return_timestamps else transcript.text


def _link(url: str) -> str:
    escaped = html.escape(url)
    return (
        f'<a href="{escaped}" rel="noreferrer noopener" target="_blank">{escaped}</a>'
        if url.startswith(("http://", "https://"))
        else escaped
    )


def main() -> None:
    """Serve until the process is stopped."""
    server = Server(os.environ.get("WHISPER_SERVER_URL", "http://127.0.0.1:8000"), os.environ.get("WHISPER_API_KEY", ""))
    theme = gr.themes.Default(
        primary_hue="teal", font=FONTS, font_mono=("ui-monospace", "monospace")
    )  # the default's fonts come from Google
    build(server).queue(default_concurrency_limit=CONCURRENT).launch(theme=theme, show_error=True, run_history=False)


if __name__ == "__main__":
    main()
