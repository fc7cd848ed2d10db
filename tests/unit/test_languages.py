"""Language tags and names, as clients of other servers send them."""

from __future__ import annotations

import pytest
from whisper.tokenizer import LANGUAGES, TO_LANGUAGE_CODE

from whispercore.api.values import read_options
from whispercore.errors import InvalidRequest
from whispercore.languages import closest, whisper_code

TAGS = {
    "en": "en en-US en_US EN-us en-Latn-GB eng ENG english English en_US.UTF-8 <|en|> en-x-private",
    "pt": "pt pt-BR pt_BR por português portugues Português-BR",
    "zh": "zh zh-Hans zh_TW zh-CN zh-Hant-HK chi zho cmn cmn-Hans-CN zh-cmn mandarin 中文 普通话 Chinese(Simplified)",
    "yue": "yue zh-yue zh-yue-HK yue-Hant-HK cantonese 粵語",
    "de": "de deu ger de-AT de_DE@euro de-1996 deutsch German",
    "no": "no nb nb-NO nob nor bokmål norsk_bokmål",
    "nn": "nn nn-NO nno nynorsk",
    "he": "he iw heb iw-IL עברית",
    "id": "id in ind in-ID bahasa-indonesia",
    "jw": "jw jv jav jv-ID javanese",
    "yi": "yi ji yid",
    "tl": "tl fil tgl fil-PH filipino",
    "ro": "ro mo ron rum moldovan",
    "sr": "sr sr-Latn srp scc",
    "fa": "fa fas per pes prs farsi",
    "ms": "ms msa may zsm",
    "fr": "fr fra fre fr-CA français francais FRANÇAIS",
    "ja": "ja jpn ja-JP 日本語",
    "hi": "hi hin हिन्दी",
    "ca": "ca ca-valencia cat",
    "es": "es spa es-419 español castilian",
    "ht": "ht hat haitian haitian_creole kreyòl",
    "haw": "haw hawaiian haw-US",
}


@pytest.mark.parametrize(("code", "tag"), [(code, tag) for code, tags in TAGS.items() for tag in tags.split()])
def test_a_tag_is_understood(code: str, tag: str) -> None:
    assert whisper_code(tag) == whisper_code(f"  {tag} ") == code


@pytest.mark.parametrize("name", ["Haitian Creole", "haitian  creole", "Bahasa Indonesia", "norwegian bokmål", "Chinese (Simplified)"])
def test_a_name_may_have_blanks(name: str) -> None:
    assert whisper_code(name) in ("ht", "id", "no", "zh")


@pytest.mark.parametrize("code", LANGUAGES)
def test_every_code_and_name_of_whispers_is_its_own(code: str) -> None:
    assert whisper_code(code) == code
    assert all(whisper_code(name.title()) == code for name, own in TO_LANGUAGE_CODE.items() if own == code)


@pytest.mark.parametrize("tag", ["", " ", "auto", "AUTO", "none", "None", "null", "detect", "auto-detect", "und"])
def test_detection(tag: str) -> None:
    assert whisper_code(tag) is None


@pytest.mark.parametrize("tag", ["xx", "germn", "tlh", "eo", "en-", "-en", "english!", "12", "en-toolongtobeasubtag", "q" * 500, "zz-US"])
def test_what_is_no_language_of_whispers(tag: str) -> None:
    with pytest.raises(KeyError):
        whisper_code(tag)


def test_what_was_meant() -> None:
    assert (closest("Germn"), closest("frenhc"), closest("q" * 500)) == ("german", "french", None)


def test_python_calls_understand_them_too() -> None:
    options = read_options({"languages": ("en-US", "deu", "Español")})
    assert options.languages == ("en", "de", "es")
    assert read_options({"language": "pt-BR"}).language == "pt"
    assert read_options({"language": "none"}).language is None
    with pytest.raises(InvalidRequest, match="did you mean 'german'"):
        read_options({"language": "germn"})
