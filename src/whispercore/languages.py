"""Language tags and names, as all kinds of clients send them → Whisper's own code, such as `en`.

Supported: ISO 639-1, 639-2 (both forms) and 639-3 codes, BCP 47 tags and POSIX locales (`en-US`, `zh_Hant_TW`,
`pt_BR.UTF-8`), the deprecated codes of both, English names, most native names, and Whisper's own token (`<|en|>`).
Case, blanks and accents are ignored.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Mapping
from types import MappingProxyType

from . import openai_whisper

LANGUAGES: Mapping[str, str] = MappingProxyType(openai_whisper.tokenizer.LANGUAGES)
"""Whisper's codes, and the English names of their languages."""
_CODES_BY_NAME: Mapping[str, str] = openai_whisper.tokenizer.TO_LANGUAGE_CODE

DETECT = ("", "auto", "automatic", "autodetect", "auto detect", "detect", "none", "null", "und", "mul")
"""How clients ask for detection. `und` and `mul` are the ISO 639 codes for an undetermined language and for several."""

_OTHER_CODES = """
en eng | zh zho chi cmn | de deu ger | es spa | ru rus | ko kor | fr fra fre | ja jpn | pt por | tr tur | pl pol | ca cat | nl nld dut
ar ara arb | sv swe | it ita | id ind in | hi hin | fi fin | vi vie | he heb iw | uk ukr | el ell gre | ms msa may zsm | cs ces cze
ro ron rum mo mol | da dan | hu hun | ta tam | no nor nb nob | th tha | ur urd | hr hrv scr | bg bul | lt lit | la lat | mi mri mao | ml mal
cy cym wel | sk slk slo | te tel | fa fas per pes prs | lv lav lvs | bn ben | sr srp scc sh hbs | az aze azj | sl slv | kn kan | et est ekk
mk mkd mac | br bre | eu eus baq | is isl ice | hy hye arm | ne nep npi | mn mon khk | bs bos | kk kaz | sq sqi alb als | sw swa swh
gl glg | mr mar | pa pan | si sin | km khm | sn sna | yo yor | so som | af afr | oc oci | ka kat geo | be bel | tg tgk | sd snd | gu guj
am amh | yi yid ydd ji | lo lao | uz uzb uzn | fo fao | ht hat | ps pus pbu pbt pst | tk tuk | nn nno | mt mlt | sa san | lb ltz
my mya bur | bo bod tib | tl tgl fil | mg mlg plt | as asm | tt tat | ln lin | ha hau | ba bak | jw jv jav | su sun
"""
"""Whisper's code, then the language's other ones: ISO 639-2/T and 639-2/B, its main variety's, deprecated ones."""

_NATIVE_NAMES = """
en:english zh:中文,汉语,漢語,普通话,普通話,國語,国语,putonghua de:deutsch es:español ru:русский ko:한국어 fr:français ja:日本語,nihongo
pt:português tr:türkçe pl:polski ca:català nl:nederlands,vlaams ar:العربية sv:svenska it:italiano id:bahasa_indonesia hi:हिन्दी,हिंदी
fi:suomi vi:tiếng_việt he:עברית uk:українська el:ελληνικά ms:bahasa_melayu cs:čeština ro:română da:dansk hu:magyar ta:தமிழ்
no:norsk,bokmål,norsk_bokmål,norwegian_bokmål th:ไทย,ภาษาไทย ur:اردو hr:hrvatski bg:български lt:lietuvių la:latina mi:māori ml:മലയാളം
cy:cymraeg sk:slovenčina te:తెలుగు fa:فارسی,farsi,dari lv:latviešu bn:বাংলা,bangla sr:српски,srpski az:azərbaycan,azeri sl:slovenščina
kn:ಕನ್ನಡ et:eesti mk:македонски br:brezhoneg eu:euskara is:íslenska hy:հայերեն ne:नेपाली mn:монгол bs:bosanski kk:қазақ sq:shqip
sw:kiswahili gl:galego mr:मराठी pa:ਪੰਜਾਬੀ si:සිංහල km:ខ្មែរ sn:chishona yo:yorùbá so:soomaali oc:occitan ka:ქართული be:беларуская
tg:тоҷикӣ sd:سنڌي gu:ગુજરાતી am:አማርኛ yi:ייִדיש lo:ລາວ uz:oʻzbek fo:føroyskt ht:kreyòl ps:پښتو tk:türkmen nn:norsk_nynorsk,norwegian_nynorsk
mt:malti lb:lëtzebuergesch my:မြန်မာ bo:བོད་སྐད tl:filipino,pilipino mg:malagasy as:অসমীয়া tt:татар ln:lingála ba:башҡорт jw:basa_jawa
su:basa_sunda yue:粤语,粵語,廣東話,广东话
"""

_TAG = re.compile(
    r"(?P<language>[a-z]{2,3})(-(?P<extended>[a-z]{3}))?(-[a-z]{4})?(-([a-z]{2}|\d{3}))?"
    r"(-([a-z\d]{5,8}|\d[a-z\d]{3}))*(-[a-wyz]-.+)?(-x-.+)?"
)
"""BCP 47: language, extended language, script, region, variants, extensions, private use; lower case, hyphens."""


def whisper_code(tag: str) -> str | None:
    """Whisper's code of a language; None if `tag` asks for detection. Raises KeyError if Whisper lacks the language."""
    name = _plain(tag)
    if name in DETECT:
        return None
    if name in _CODES:
        return _CODES[name]
    language, _, region = name.rpartition(" ")
    if language in _CODES and len(region) == 2:  # portuguese-br is not a tag, but unambiguous
        return _CODES[language]
    match = _TAG.fullmatch(name.replace(" ", "-"))
    if not match:
        raise KeyError(tag)
    return _CODES.get(match["extended"] or "") or _CODES[match["language"]]


def closest(tag: str) -> str | None:
    """The code or English name most similar to `tag`; None if none is similar."""
    close = difflib.get_close_matches(_plain(tag)[:64], [*LANGUAGES, *_CODES_BY_NAME], n=1)
    return close[0] if close else None


def _plain(tag: str) -> str:
    """`tag` in lower case, its parts separated by single spaces, without accents, encoding or a remark in brackets."""
    bare = re.sub(r"[.@].*|[(（].*[)）]", "", tag.strip().removeprefix("<|").removesuffix("|>"))
    letters = unicodedata.normalize("NFKD", bare.casefold())
    unaccented = "".join(letter for letter in letters if not unicodedata.combining(letter))
    return " ".join(re.split(r"[\s_-]+", unaccented.strip()))


def _codes() -> dict[str, str]:
    """Every code and name, as normalized by `_plain` → Whisper's code."""
    codes = {**{_plain(name): code for name, code in _CODES_BY_NAME.items()}, **{code: code for code in LANGUAGES}}
    for group in re.split(r"[|\n]", _OTHER_CODES.strip()):
        own, *others = group.split()
        codes |= dict.fromkeys(others, own)
    for entry in _NATIVE_NAMES.split():
        own, _, names = entry.partition(":")
        codes |= {_plain(name): own for name in names.split(",")}
    return codes


_CODES: Mapping[str, str] = MappingProxyType(_codes())
