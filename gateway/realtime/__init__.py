"""OpenAI's Realtime transcription protocol: sound comes in over a WebSocket, text goes out while it is spoken.

A session decodes the sound (`audio`), finds turns of speech in it (`voices`, `turns`), transcribes the open turn again
and again (`recognizer`, at a rate set by `pacing`), sends what has become certain (`captions`), and at the end of a
turn transcribes it as a whole, in the same way as a file.
"""
