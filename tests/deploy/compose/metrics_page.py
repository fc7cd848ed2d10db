"""A page of metrics as the server's front door publishes it, with the values of a busy server."""

from __future__ import annotations

import time

BUCKETS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900)
ROUTES = {"/v1/audio/transcriptions": 0.8, "/predictions/whisper": 0.15, "/v1/audio/translations": 0.05}
REQUESTS_A_SECOND, AUDIO_A_REQUEST, SECONDS_A_REQUEST = 4.0, 14.0, 1.7


def metrics_page(seconds: float) -> str:
    """The page of a server that has run for so many seconds: TorchServe's worker labels its metrics with its host's name."""
    requests = REQUESTS_A_SECOND * seconds
    audio, windows = requests * AUDIO_A_REQUEST, requests * 1.2
    worker = {
        "whisper_ready": 1,
        'whisper_model_loaded{model="base"}': 1,
        "whisper_open_requests": 7,
        "whisper_waiting_audio_seconds": 95.5,
        "whisper_audio_seconds_total": audio,
        "whisper_processing_seconds_total": requests * SECONDS_A_REQUEST,
        "whisper_windows_total": windows,
        "whisper_batches_total": windows / 5,
        "whisper_fallbacks_total": windows / 20,
        "whisper_out_of_memory_total": seconds // 600,
        "whisper_failed_batches_total": 0,
        "whisper_shared_total": requests * 0.01,
        'whisper_requests_total{status="200"}': requests * 0.97,
        'whisper_requests_total{status="422"}': requests * 0.03,
        'whisper_dropped_total{reason="no_speech"}': windows * 0.04,
        'whisper_dropped_total{reason="hallucination"}': windows * 0.01,
    }
    lines = [f"{_labelled(name, 'Hostname', 'worker')} {value:.6g}" for name, value in worker.items()]
    lines.append(f"{_labelled('whisper_last_success_timestamp_seconds', 'Hostname', 'worker')} {time.time():.3f}")
    lines.append(f'whisper_gateway_requests_total{{route="/health/ready",status="503"}} {seconds / 5:.6g}')
    statuses = {"200": 0.96, "422": 0.03, "503": 0.007, "500": 0.003}
    for route, share in ROUTES.items():
        count = requests * share
        lines += [
            f'whisper_gateway_requests_total{{route="{route}",status="{status}"}} {count * part:.6g}' for status, part in statuses.items()
        ]
        lines += [
            f'whisper_gateway_request_seconds_bucket{{route="{route}",le="{bound}"}} {count * bound / (bound + 1.7):.6g}'
            for bound in BUCKETS
        ]
        lines.append(f'whisper_gateway_request_seconds_bucket{{route="{route}",le="+Inf"}} {count:.6g}')
        lines.append(f'whisper_gateway_request_seconds_count{{route="{route}"}} {count:.6g}')
        lines.append(f'whisper_gateway_request_seconds_sum{{route="{route}"}} {count * SECONDS_A_REQUEST:.6g}')
    lines += [f'whisper_gateway_audio_seconds_total{{key="{key}"}} {audio * share:.6g}' for key, share in (("alice", 0.7), ("bob", 0.3))]
    lines += [f'whisper_jobs{{state="{state}"}} {count}' for state, count in (("queued", 2), ("running", 1), ("completed", 40))]
    lines.append("whisper_realtime_sessions 3")
    return "\n".join(lines) + "\n"


def _labelled(name: str, label: str, value: str) -> str:
    """The name of a series with one more label."""
    return f'{name[:-1]},{label}="{value}"}}' if name.endswith("}") else f'{name}{{{label}="{value}"}}'
