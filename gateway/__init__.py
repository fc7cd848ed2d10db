"""The front door: one ASGI application with OpenAI's API, keys, jobs, live captions and a page.

Behind it stands a back end: TorchServe, or the core in the same process.
"""
