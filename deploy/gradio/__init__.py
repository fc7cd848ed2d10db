"""A Gradio app over the HTTP API of a running server: microphone, file and URL."""
