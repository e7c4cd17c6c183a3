"""Whether an amount describes the noun after it and so is singular: ``"a $20 ticket"``, ``"12V battery"``."""

import re

from fastglow.text.english.context import last_word

# Words after an amount that neither are nouns nor continue a noun phrase.
CLOSED_CLASS = frozenset(
    """
    a aboard about above according across after against ahead all along alongside also although always am amid among
    an and annually any anyway apart apiece are around as aside at away back be because been before behind being
    below beneath beside besides between beyond billions both bucks but by can cannot cents could depending despite
    did do does dollars done down downhill downstream downwards due during each east eastbound eastward eastwards
    eight eighteen eighty either eleven else enough euros even ever every except few fifteen fifty five for forty
    forward forwards four fourteen from further had half has have he hence her here hers him his how however i if in
    inland inside instead into is it its itself just last later least less lest like long longer many may maybe me
    might millions more most much must my near nearby neither never next nine nineteen ninety no nor north
    northbound northeast northern northward northwards northwest not now of off offshore often on once one only onto
    onward onwards opposite or other otherwise our ours out outside over overall overnight overseas owing past pence
    per perhaps plus pounds quite rather really respectively same seven seventeen seventy shall she should since six
    sixteen sixty so some somewhere soon south southbound southeast southward southwards southwest still such ten
    than that the their theirs them then there thereafter therefore these they thirteen thirty this those though
    thousands three through throughout thus till to today together tomorrow tonight too toward towards twelve twenty
    twice two under underground underwater unless until up uphill upon upstream upward upwards us versus very via
    was we were west westbound westward westwards what whatever when whenever where whereas whereby wherever whether
    which while who whom whose why will with within without worth would yes yesterday yet you your yours zero
    """.split()
)
# Adjectives and adverbs that describe the amount before them: "6 ft tall", "$20 extra", "$5 million cash".
_POSTPOSED = frozenset(
    """
    abroad afield again ago almost alone already altogether annual anywhere ashore available barefoot better bigger
    brighter broad cash cheaper clear clockwise closer colder combined cooler dearer deep deeper downstairs downwind
    dry earlier early east elsewhere empty everywhere extra farther fast faster flat free gross heavier heavy high
    higher home hotter huge indoors late left light lighter louder lower nationwide nearer net nonstop old older
    online outdoors overdue payable poorer quicker retail richer round short shorter shy slower smaller solo sooner
    square steeper straight stronger sufficient tall taller thick thicker thin thinner tighter times total upfront
    upstairs upwind warmer weaker wet wide wider worldwide worse young younger
    """.split()
)
_ALSO_NOUNS = frozenset("flat home light round square".split())
# Verbs, not ending in -ed, whose subject is an amount, or that follow one.
_VERBS = frozenset(
    """
    adds allows beats became become becomes began begins belongs bought bring brings brought buy buys came come
    comes cost costs covers ensures equal equals exceeds feels fell felt follows found gave get gets give given
    gives go goes gone got grew grown happens held helps includes keeps kept lasts lay lets lie lies lost made make
    makes matter matters mean means meant needs paid pay pays provides ran remain remains represent represents
    requires rose said sat saw says seem seems sees sell sent separates sits sold spent stands stay stays stood
    taken takes thought told took weighs went wins won
    """.split()
)
# Containers of a measured substance: "5 kg bag", unlike "5 kg flour".
_CONTAINERS = frozenset(
    """
    baby bag bags barrel barrels block blocks bottle bottles box boxes bucket buckets can cans capacity carton
    cartons container containers cup cups cylinder cylinders dose doses drum drums dumbbell dumbbells engine engines
    glass glasses jar jars jug jugs keg kegs kettlebell limit load pack packet packets packs parcel portion pot pots
    sack sacks serving servings tank tanks tin tins tub tubs weight weights
    """.split()
)
_ADVERBIAL_NOUNS = frozenset("daily early hourly monthly only weekly yearly".split())
_NOUNS_IN_LY = frozenset("assembly belly butterfly family fly jelly monopoly rally reply supply".split())
_CALENDAR = re.compile(
    r"(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day|(?:Jan|Febr)uary|March|April|May|Ju(?:ne|ly)|August"
)

# After a singular article only "a 5 kilometer ..." is right.
_ARTICLES = ("a", "an")
_COUNTS = frozenset(
    "each every per one two three four five six seven eight nine ten eleven twelve several many few".split()
)
_DETERMINERS = frozenset(
    "another any her his its my no our that the their these this those which your whose new old single".split()
)
_COMPOUND = re.compile(r"-(?!plus\b|odd\b|ish\b)[a-z]")
_PER = re.compile(r"\A ?/ ?(?:hr|hour|day|night|week|wk|month|mo|year|yr|person|head)\b")
# "a $20 or $30 ticket", "a 3 hr 20 min flight", "a $50 a night room".
_CONTINUES = re.compile(r" (?:(?:or|and|to|by) (?:an? )?)?[$£€]?\d| (?:an?|per) [a-z]+ [a-z]")
_NEXT = re.compile(r" ([A-Za-z]+)(-[A-Za-z])?(?=['\w-]{0,32}(.?.?))")


def is_attributive(preceding: str, following: str, of_substance: bool = False) -> bool:
    """Whether the amount between ``preceding`` and ``following`` describes the noun that comes next.

    Without a tagger, the word after the amount counts as a noun, or as the beginning of a noun phrase, unless it
    belongs to a closed class or is an adverb, a participle, a comparative, or a verb whose subject is an amount. After
    ``a`` and ``an``, adverbs and adjectives are allowed, too; after these articles or a count (``"two $20 bills"``),
    also participles and proper names. Amounts ``of_substance`` (grams, liters) need an article or a count before them,
    or a container after them, since recipes omit ``of`` (``"200 g flour"``). Known errors: unlisted verbs (``"$20
    talks"``) and substances after money or length (``"$5 million aid"``) count as nouns.
    """
    following = _PER.sub("", following)
    if _COMPOUND.match(following):
        return True
    article = last_word(preceding[-24:]).lower()
    if not preceding.endswith(" ") or preceding.rstrip()[-1:] in tuple(",;:.!?)"):
        article = ""
    has_article = article in _ARTICLES
    if has_article and _CONTINUES.match(following):
        return True
    upcoming = _NEXT.match(following)
    if not upcoming:
        return False
    word = upcoming[1].lower()
    is_compound = bool(upcoming[2]) and not word.endswith(("ty", "north", "south", "east", "west"))  # "two-year"
    is_counted = has_article or article in _COUNTS or article.isdigit()
    is_can = word == "can" and (is_counted or following.startswith(" can of "))
    if is_can or (word in CLOSED_CLASS and not is_compound):
        return is_can
    is_determined = is_counted or article in _DETERMINERS or article.endswith("'s")
    continues = upcoming[3].startswith(" ") and upcoming[3][1:].isalnum()
    if upcoming[1][0].isupper():
        return is_determined and not _CALENDAR.fullmatch(upcoming[1])
    if word in _POSTPOSED:
        return has_article and (continues or word in _ALSO_NOUNS)
    if has_article:
        return not word.endswith("ly") or word in _ADVERBIAL_NOUNS | _NOUNS_IN_LY
    if word in _VERBS or (word.endswith("ly") and word not in _NOUNS_IN_LY):
        return False
    if word.endswith("ed") and not (is_counted or word.endswith(("eed", "shed", "sled", "bed"))):
        return False
    if word.endswith("ing") and not is_determined and len(word) > 5:
        return False
    return is_counted or word in _CONTAINERS if of_substance else True
