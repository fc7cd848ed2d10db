// The official client, unmodified, against the server: `node client.mjs BASE_URL RECORDING` prints what it got as one JSON object.
import fs from 'node:fs';
import OpenAI, { toFile } from 'openai';

const [baseURL, path] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: 'unused', maxRetries: 0, timeout: 120_000 });

const transcribe = (options) => client.audio.transcriptions.create({ file: fs.createReadStream(path), model: 'whisper-1', ...options });
const verbose = (...granularities) => transcribe({ response_format: 'verbose_json', timestamp_granularities: granularities });

async function events(options) {
  const found = [];
  for await (const event of await transcribe({ stream: true, ...options })) found.push(event);
  return found;
}

async function refusal(request) {
  try {
    await request();
    return null;
  } catch (error) {
    const { status, message, param, code, type, requestID } = error;
    return { name: error.constructor.name, isAPIError: error instanceof OpenAI.APIError, status, message, param, code, type, requestID };
  }
}

const models = [];
for await (const model of client.models.list()) models.push(model);

console.log(
  JSON.stringify({
    json: await transcribe(),
    text: await transcribe({ response_format: 'text' }),
    srt: await transcribe({ response_format: 'srt' }),
    vtt: await transcribe({ response_format: 'vtt' }),
    verbose: await verbose(),
    words_segments: await verbose('word', 'segment'),
    segments_words: await verbose('segment', 'word'),
    options: await transcribe({ prompt: 'A timer.', language: 'en', temperature: 0 }),
    logprobs: await transcribe({ include: ['logprobs'] }),
    hints: await transcribe({ languages: ['en', 'es'], keywords: ['timer', 'minutes'] }),
    auto: await transcribe({ chunking_strategy: 'auto' }),
    server_vad: await transcribe({ chunking_strategy: { type: 'server_vad', threshold: 0.4, silence_duration_ms: 500, prefix_padding_ms: 300 } }),
    translation: await client.audio.translations.create({ file: fs.createReadStream(path), model: 'whisper-1' }),
    stream: await events(),
    stream_logprobs: await events({ include: ['logprobs'] }),
    models,
    bad_value: await refusal(() => transcribe({ temperature: 7 })),
    unknown_field: await refusal(() => transcribe({ beam_sise: 5 })),
    bad_stream: await refusal(() => transcribe({ stream: true, language: 'xx' })),
    no_audio: await refusal(async () => transcribe({ file: await toFile(Buffer.from('words, not sounds '.repeat(100)), 'letter.wav') })),
    no_path: await refusal(() => client.post('/audio/poems', { body: {} })),
  }),
);
