"""A semantic parsing task: requests to an assistant, and what they mean as a tree of intents and slots.

    python benchmarks/semantic_parsing.py FOLDER

writes FOLDER/train.jsonl and FOLDER/held_out.jsonl, one item a line, the same ones at every run:

    {"prompt": "wake me at 7 am tomorrow\\n",
     "response": "[IN:CREATE_ALARM wake me [SL:DATE_TIME at 7 am tomorrow ] ]", "domain": "alarm"}

The task is made after TOPv2 (arXiv 2010.03546): eight domains, nested intents and slots, and trees that repeat the
request's words, so that a parser writes some tokens by rule, copies others, and must understand where slots begin and
end. Items come from the grammar below. An item's *form* is its tree with names, numbers and other fillings left out;
there are tens of thousands of forms, and no form, and no sentence, is in both files.

The grammar has a rule a line, `name = alternative | alternative`. In an alternative, `{rule}` is written out, `{rule?}`
in half of the cases, brackets belong to the tree, and all else are words. Fillings are rules whose names begin with @.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from truedepth.files import write_atomic

TRAIN, HELD_OUT = "train.jsonl", "held_out.jsonl"

HELD_OUT_SHARE = 12
"""One form in so many is held out."""

GRAMMAR = """
request = {alarm} | {reminder} | {weather} | {music} | {navigation} | {messaging} | {timer} | {event}

hey = please | can you | could you | would you | will you please | i want you to | i need you to | go ahead and
thanks = please | thanks | thank you | for me

clock = at {@hour} | at {@hour} {ampm} | at {@hour} {@minute} | at {@hour} {@minute} {ampm} | at {special}
special = noon | midnight | half past {@hour} | quarter to {@hour} | quarter past {@hour} {ampm}
ampm = am | pm | o'clock
day = tomorrow | today | on {@weekday} | next {@weekday} | this {@weekday} | on {@month} {@ordinal} | {daypart}
daypart = tonight | this {part} | tomorrow {part} | {@weekday} {part} | on {@weekday} {part}
part = morning | afternoon | evening
when = {clock} | {day} | {day} {clock} | {clock} {day} | in {length}
length = {@number} {unit} | {@number} {unit} and {@number} {unit} | half an hour | an hour and a half
unit = minutes | hours | seconds
date = [SL:DATE_TIME {when} ]
span = [SL:DATE_TIME {day} ] | [SL:DATE_TIME for {day} ] | [SL:DATE_TIME over the next {@number} days ]
repeat = [SL:PERIOD every {@weekday} ] | [SL:PERIOD every day ] | [SL:PERIOD every other {@weekday} ] | {often}
often = [SL:PERIOD on weekdays ] | [SL:PERIOD twice a week ] | [SL:PERIOD every {@number} days ]

show = show | show me | list | tell me | read out | bring up
remove = delete | cancel | remove | get rid of | turn off
contact = {@name} | [IN:GET_CONTACT my [SL:TYPE_RELATION {@relation} ] ] | {own}
own = [IN:GET_CONTACT {@name} 's [SL:TYPE_RELATION {@relation} ] ]
home = [IN:GET_LOCATION_HOME [SL:CONTACT {@name} ] 's house ] | {relative}
relative = [IN:GET_LOCATION_HOME my [SL:TYPE_RELATION {@relation} ] 's place ] | [IN:GET_LOCATION_HOME home ]

alarm = {create_alarm} | {create_alarm} | {get_alarm} | {delete_alarm} | {update_alarm} | {snooze_alarm}
create_alarm = [IN:CREATE_ALARM {hey?} {set} {alarms} {alarm_name?} {date} {repeat?} {thanks?} ] | {wake} | {repeated}
wake = [IN:CREATE_ALARM {hey?} wake me {up?} {date} {thanks?} ] | [IN:CREATE_ALARM {hey?} get me up {date} {repeat?} ]
repeated = [IN:CREATE_ALARM {hey?} {set} {alarms} {repeat} {date} {alarm_name?} ]
set = set | create | make | add | schedule
alarms = an alarm | a new alarm | another alarm | an extra alarm | one more alarm
up = up
alarm_name = {called} [SL:ALARM_NAME {@label} ]
called = named | called | labeled
get_alarm = [IN:GET_ALARM {hey?} {show} {which} alarms {span?} {thanks?} ] | {when_alarm}
when_alarm = [IN:GET_ALARM when is my [SL:ALARM_NAME {@label} ] alarm ] | [IN:GET_ALARM do i have an alarm {date} ]
which = my | all my | all of my | the | all the
delete_alarm = [IN:DELETE_ALARM {hey?} {remove} {which} alarms {span?} {thanks?} ] | {delete_one}
delete_one = [IN:DELETE_ALARM {hey?} {remove} my [SL:ALARM_NAME {@label} ] alarm {thanks?} ]
update_alarm = [IN:UPDATE_ALARM {hey?} {change} my {label?} alarm to [SL:DATE_TIME_NEW {clock} ] {thanks?} ]
label = [SL:ALARM_NAME {@label} ]
change = change | move | switch | push | reschedule
snooze_alarm = [IN:SNOOZE_ALARM {hey?} snooze {my_alarm} {for?} {thanks?} ] | [IN:SILENCE_ALARM {hey?} silence {my_alarm} ]
my_alarm = the alarm | my alarm | that alarm | my {label} alarm
for = for [SL:DURATION {length} ]

reminder = {remind} | {remind} | {remind} | {get_reminder} | {delete_reminder} | {update_reminder}
remind = [IN:CREATE_REMINDER {hey?} remind {person} {date?} to [SL:TODO {todo} ] {thanks?} ] | {remind_late} | {about}
remind_late = [IN:CREATE_REMINDER {hey?} remind {person} to [SL:TODO {todo} ] {date} {repeat?} ]
about = [IN:CREATE_REMINDER {hey?} {set} {reminders} about [SL:TODO {@event} ] {date?} {thanks?} ]
reminders = a reminder | a new reminder | another reminder
person = [SL:PERSON_REMINDED me ] | [SL:PERSON_REMINDED me ] | [SL:PERSON_REMINDED {contact} ]
todo = {@verb} the {@thing} | {@verb} the {@adjective} {@thing} | buy {@thing} and {@thing} | {todo_nested} | {errand}
errand = pick up {@name} from the {@category} | take the {@thing} to the {@category} | go to {@place}
todo_nested = [IN:SEND_MESSAGE text [SL:RECIPIENT {contact} ] ] | [IN:CREATE_CALL call [SL:CONTACT {contact} ] ] | {attend}
attend = attend [IN:GET_EVENT the [SL:NAME_EVENT {@event} ] ] | [IN:GET_INFO_TRAFFIC check the traffic ]
get_reminder = [IN:GET_REMINDER {hey?} {show} {which} reminders {span?} ] | [IN:GET_REMINDER what do i have to do {span} ]
delete_reminder = [IN:DELETE_REMINDER {hey?} {remove} the reminder to [SL:TODO {todo} ] ] | {delete_all}
delete_all = [IN:DELETE_REMINDER {hey?} {remove} {which} reminders {span?} {thanks?} ]
update_reminder = [IN:UPDATE_REMINDER {hey?} {change} my reminder about [SL:TODO {@event} ] to [SL:DATE_TIME_NEW {when} ] ]

weather = {forecast} | {forecast} | {condition} | {temperature} | {sun}
forecast = [IN:GET_WEATHER {hey?} {show} the {weather_word} {near?} {span?} ] | {what_weather}
what_weather = [IN:GET_WEATHER {what} the {weather_word} {span?} {near?} ]
weather_word = weather | forecast | weather forecast | weather report
what = what is | what 's | how is | how 's
condition = [IN:GET_WEATHER {will} [SL:WEATHER_ATTRIBUTE {@weather} ] {near?} {span} ] | {need}
will = will it | is it going to | should i expect it to | do you think it will
need = [IN:GET_WEATHER do i need {an?} [SL:WEATHER_ATTRIBUTE {@gear} ] {span?} {near?} ]
an = a | an extra
near = in [SL:LOCATION {@city} ] | near [SL:LOCATION {@place} ] | in [SL:LOCATION {@city} {@state} ] | {around}
around = around [SL:LOCATION {home} ] | close to [SL:LOCATION [IN:GET_EVENT the [SL:NAME_EVENT {@event} ] ] ]
temperature = [IN:GET_WEATHER {what} the temperature {near?} {in_unit?} {span?} ] | {how_warm}
how_warm = [IN:GET_WEATHER how {warm} will it be {near?} {span} {in_unit?} ]
warm = [SL:WEATHER_ATTRIBUTE warm ] | [SL:WEATHER_ATTRIBUTE cold ] | [SL:WEATHER_ATTRIBUTE windy ]
in_unit = in [SL:WEATHER_TEMPERATURE_UNIT celsius ] | in [SL:WEATHER_TEMPERATURE_UNIT fahrenheit ]
sun = [IN:GET_SUNSET when does the sun set {near?} {span?} ] | [IN:GET_SUNRISE what time is sunrise {near?} {span?} ]

music = {play} | {play} | {play} | {playlist} | {control}
play = [IN:PLAY_MUSIC {hey?} {start} {track} {provider?} {thanks?} ] | [IN:PLAY_MUSIC {hey?} {start} {style} {provider?} ]
start = play | put on | start | start playing | let me hear
track = {title} | {title} by {artist} | the [SL:MUSIC_TYPE song ] {title} | the [SL:MUSIC_TYPE song ] {title} by {artist} | {album}
title = [SL:MUSIC_TRACK_TITLE {song} ]
song = {@adjective} {@noun} | the {@adjective} {@noun} | {@noun} of {@noun} | {@noun} and {@noun} | my {@noun}
artist = [SL:MUSIC_ARTIST_NAME {@name} {@surname} ] | [SL:MUSIC_ARTIST_NAME the {@adjective} {@noun}s ]
album = the [SL:MUSIC_TYPE album ] [SL:MUSIC_ALBUM_TITLE {song} ] | the [SL:MUSIC_TYPE album ] [SL:MUSIC_ALBUM_TITLE {song} ] by {artist}
style = {some} [SL:MUSIC_GENRE {@genre} ] {music_type} | {some} {music_type} by {artist} | my {named_list}
some = some | a little | more
music_type = [SL:MUSIC_TYPE music ] | [SL:MUSIC_TYPE songs ] | [SL:MUSIC_TYPE tunes ]
named_list = [SL:MUSIC_PLAYLIST_TITLE {@label} ] [SL:MUSIC_TYPE playlist ]
provider = on [SL:MUSIC_PROVIDER_NAME {@provider} ] | from [SL:MUSIC_PROVIDER_NAME {@provider} ]
playlist = [IN:ADD_TO_PLAYLIST_MUSIC {hey?} add {track} to {my} {named_list} {thanks?} ] | {new_list} | {remove_song}
my = my | the
new_list = [IN:CREATE_PLAYLIST_MUSIC {hey?} {set} a {new?} [SL:MUSIC_TYPE playlist ] {called} [SL:MUSIC_PLAYLIST_TITLE {@label} ] ]
new = new
remove_song = [IN:REMOVE_FROM_PLAYLIST_MUSIC {hey?} {remove} {track} from {my} {named_list} ]
control = [IN:SKIP_TRACK_MUSIC {hey?} skip {this} ] | [IN:LIKE_MUSIC {hey?} {like} {this} ] | [IN:LOOP_MUSIC {hey?} {again} {this} {thanks?} ]
this = this [SL:MUSIC_TYPE song ] | the [SL:MUSIC_TYPE track ] | {title} | {title} by {artist}
like = like | love | thumbs up | save
again = repeat | loop | replay

navigation = {directions} | {directions} | {duration} | {traffic} | {leave} | {distance}
directions = [IN:GET_DIRECTIONS {hey?} {give} {from?} to {destination} {avoid?} {thanks?} ] | {route}
give = give me directions | get directions | show me the way | navigate | find directions
route = [IN:GET_DIRECTIONS {what} the {best} {way} to {destination} {from?} {avoid?} ]
best = [SL:ATTRIBUTE fastest ] | [SL:ATTRIBUTE shortest ] | [SL:ATTRIBUTE easiest ] | best
way = way | route
destination = [SL:DESTINATION {@city} ] | [SL:DESTINATION {@place} ] | [SL:DESTINATION {home} ] | {destination_nested}
destination_nested = [SL:DESTINATION [IN:GET_EVENT the [SL:NAME_EVENT {@event} ] {at_place?} ] ] | {nearest}
at_place = at [SL:LOCATION {@place} ]
nearest = [SL:DESTINATION [IN:GET_LOCATION the nearest [SL:CATEGORY_LOCATION {@category} ] ] ]
from = from [SL:SOURCE {@place} ] | from [SL:SOURCE {@city} ] | from [SL:SOURCE {home} ]
avoid = {without} [SL:OBSTRUCTION_AVOID {@obstruction} ] | via [SL:WAYPOINT {@city} ] | along [SL:PATH {@road} ]
without = avoiding | without
duration = [IN:GET_ESTIMATED_DURATION how long {take} to {travel} {from?} to {destination} {at?} ]
take = does it take | will it take | would it take
travel = [SL:METHOD_TRAVEL drive ] | [SL:METHOD_TRAVEL walk ] | [SL:METHOD_TRAVEL bike ] | get
at = [SL:DATE_TIME_DEPARTURE {clock} ] | [SL:DATE_TIME_DEPARTURE if i leave {when} ]
traffic = [IN:GET_INFO_TRAFFIC {what} {the_traffic} on [SL:PATH {@road} ] {span?} ] | {traffic_to}
the_traffic = the traffic | traffic | the traffic like
traffic_to = [IN:GET_INFO_TRAFFIC {hey?} {show} the traffic {from?} to {destination} ]
leave = [IN:GET_ESTIMATED_DEPARTURE when {should} i leave {from?} to {reach} {destination} [SL:DATE_TIME_ARRIVAL by {@hour} {ampm} ] ]
should = should | must | do
reach = reach | be at | arrive at | get to
distance = [IN:GET_DISTANCE how far is {destination} {from?} {in_miles?} ]
in_miles = in [SL:UNIT_DISTANCE miles ] | in [SL:UNIT_DISTANCE kilometers ]

messaging = {send} | {send} | {send} | {get_message} | {react}
send = [IN:SEND_MESSAGE {hey?} {tell} {recipient} {that} {content} ] | {send_to} | {ask}
tell = tell | text | message | let
recipient = [SL:RECIPIENT {contact} ] | [SL:RECIPIENT {contact} ] | {two} | [SL:GROUP {@group} ]
two = [SL:RECIPIENT {@name} ] and [SL:RECIPIENT {@name} ]
that = that | know that | saying
content = [SL:CONTENT_EXACT {clause} ]
clause = i am {state} | i will be {state} | the {@thing} is {@adjective} | we need {@thing} | {clause_more}
clause_more = {@name} has the {@thing} | i found the {@adjective} {@thing} | dinner is {@hour} {ampm} | my {@thing} broke
state = late | on my way | running behind | at {@place} | done with the {@thing} | in {@city} | home by {@hour}
send_to = [IN:SEND_MESSAGE {hey?} send {messages} to {recipient} {app?} saying {content} ]
messages = a message | a text | a quick message | a note
app = on [SL:RESOURCE {@app} ] | with [SL:RESOURCE {@app} ]
ask = [IN:SEND_MESSAGE {hey?} ask {recipient} if {asked} ]
asked = [SL:CONTENT_EXACT she has the {@thing} ] | [SL:CONTENT_EXACT they need {@thing} ] | {asked_more}
asked_more = [SL:CONTENT_EXACT he is at {@place} ] | [SL:CONTENT_EXACT the {@adjective} {@thing} is still there ]
get_message = [IN:GET_MESSAGE {hey?} {show} {which} {kind} messages {sender?} {app?} ] | {any}
kind = new | unread | recent | latest
sender = from [SL:SENDER {contact} ] | from [SL:GROUP {@group} ]
any = [IN:GET_MESSAGE do i have any {kind} messages {sender?} {app?} ]
react = [IN:REACT_MESSAGE {hey?} react with {a} [SL:TYPE_REACTION {@reaction} ] to {last} ] | {ignore}
a = a | the
last = the [SL:ORDINAL last ] message {sender?} | {@name} 's [SL:ORDINAL last ] message
ignore = [IN:IGNORE_MESSAGE {hey?} ignore {which} messages {sender} ]

timer = {create_timer} | {create_timer} | {change_timer} | {pause_timer} | {get_timer}
create_timer = [IN:CREATE_TIMER {hey?} {set} {timers} {timer_name?} {for} {thanks?} ] | {count}
timers = a timer | a new timer | another timer
timer_name = {called} [SL:TIMER_NAME {@label} ]
count = [IN:CREATE_TIMER {hey?} {count_down} [SL:DURATION {length} ] {thanks?} ]
count_down = count down | time me for | start a countdown of
change_timer = [IN:ADD_TIME_TIMER {hey?} add [SL:DURATION {length} ] to {the_timer} ] | {less}
less = [IN:SUBTRACT_TIME_TIMER {hey?} take [SL:DURATION {length} ] off {the_timer} {thanks?} ]
the_timer = the timer | my timer | my [SL:TIMER_NAME {@label} ] timer | the [SL:TIMER_NAME {@label} ] timer
pause_timer = [IN:PAUSE_TIMER {hey?} {pause} {the_timer} {thanks?} ] | [IN:RESUME_TIMER {hey?} {resume} {the_timer} ] | {end}
pause = pause | hold | freeze
resume = resume | continue | unpause
end = [IN:DELETE_TIMER {hey?} {remove} {the_timer} {thanks?} ] | [IN:RESTART_TIMER {hey?} restart {the_timer} {for?} ]
get_timer = [IN:GET_TIMER {hey?} {show} {the_timer} ] | [IN:GET_TIMER how much time is left on {the_timer} ]

event = {events} | {events} | {going} | {book}
events = [IN:GET_EVENT {hey?} {find} {category} {near?} {span?} {thanks?} ] | [IN:GET_EVENT {what_events} {span?} {near?} ]
find = find | find me | look up | search for | recommend
category = {some?} [SL:CATEGORY_EVENT {@category_event} ] | {festival}
festival = [SL:CATEGORY_EVENT {@genre} {@category_event} ] | {@adjective} [SL:CATEGORY_EVENT {@category_event} ]
what_events = what [SL:CATEGORY_EVENT {@category_event} ] are {there} | are there any [SL:CATEGORY_EVENT {@category_event} ]
there = there | happening | going on
going = [IN:GET_EVENT_ATTENDEE {who} going to the [SL:NAME_EVENT {@event} ] {span?} ] | {when_event}
who = who is | who 's | which of my friends are
when_event = [IN:GET_DATE_TIME_EVENT when is the [SL:NAME_EVENT {@event} ] {near?} ] | {join}
join = [IN:GET_EVENT {hey?} {show} events with [SL:ATTENDEE {contact} ] {span?} ]
book = [IN:BOOK_EVENT {hey?} {reserve} [SL:AMOUNT {@number} ] {tickets} for the [SL:NAME_EVENT {@event} ] {span?} ]
reserve = book | reserve | buy | get
tickets = tickets | seats | places

@hour = 1 | 2 | 3 | 4 | 5 | 6 | 7 | 8 | 9 | 10 | 11 | 12
@minute = 05 | 10 | 15 | 20 | 25 | 30 | 35 | 40 | 45 | 50 | 55 | 12 | 37 | 48
@number = 2 | 3 | 4 | 5 | 6 | 7 | 8 | 9 | 10 | 12 | 15 | 20 | 25 | 30 | 40 | 45 | 50 | 90
@weekday = monday | tuesday | wednesday | thursday | friday | saturday | sunday
@month = january | february | march | april | may | june | july | august | september | october | november | december
@ordinal = first | second | third | 4th | 5th | 6th | 9th | 10th | 12th | 15th | 18th | 20th | 22nd | 25th | 30th
@name = anna | ben | carla | david | elena | frank | grace | hassan | ines | jack | kate | liam | maria | nora | omar | paula | quinn | rosa | sam | tara | umar | vera | walter | yuki | zoe | amir | bruno | chen | diego | emma
@surname = adams | baker | cortez | dubois | evans | fischer | garcia | hughes | ito | jensen | keller | lopez | meyer | novak | olsen | patel | rossi | silva | tanaka | weber
@relation = sister | brother | mother | father | boss | wife | husband | neighbor | dentist | coach | aunt | roommate
@label = gym | work | school | early bird | baking | laundry | medicine | road trip | study | yoga | deep focus | sunday run | night shift | garden
@city = paris | boston | chicago | denver | lisbon | london | madrid | miami | new york | oslo | prague | rome | san diego | seattle | sydney | tokyo | toronto | vienna | austin | cairo | dallas | dublin | helsinki | lima
@state = texas | ohio | maine | oregon | florida | georgia | nevada | kansas
@place = central park | union station | the airport | the old bridge | city hall | the harbor | grand theater | the north gate | market square | pier nine | the opera | riverside mall
@category = pharmacy | library | gas station | post office | bakery | hospital | train station | bank | gym | museum | supermarket | school
@road = highway 12 | route 66 | main street | ocean drive | the ring road | interstate 80 | fifth avenue | the coast road
@obstruction = tolls | highways | ferries | traffic | construction | bridges
@event = book fair | jazz night | spring gala | board meeting | wine tasting | science fair | chess final | food festival | charity run | film premiere | team lunch | art auction
@category_event = concerts | parties | exhibitions | festivals | plays | workshops | markets | matches | lectures | parades
@verb = clean | wash | return | fix | paint | order | pack | sell | water | feed | check | collect
@thing = car | kitchen | package | bike | garden | laundry | printer | laptop | passport | sofa | milk | bread | cake | camera | jacket | lamp | mirror | phone | piano | tent | violin | window | keys | tickets
@adjective = blue | broken | crazy | golden | happy | heavy | little | lonely | lost | new | old | purple | quiet | red | silent | silver | slow | sweet | tall | wild
@noun = river | summer | dream | road | fire | shadow | heart | mountain | dancer | moon | ocean | winter | mirror | garden | storm | star | stranger | train | window | angel
@genre = jazz | rock | pop | folk | classical | country | reggae | techno | blues | hip hop
@provider = spotify | pandora | youtube | deezer | tidal
@app = whatsapp | messenger | telegram | signal
@group = family chat | soccer team | book club | office | band
@reaction = smiley | heart | thumbs up | sad face | laugh
@weather = rain | snow | storm | hail | be sunny | be foggy | be humid | freeze
@gear = umbrella | jacket | raincoat | sunscreen | scarf
"""

_REFERENCE = re.compile(r"\{(@?\w+)(\??)\}")
_BRACKET = re.compile(r"\[\S+|\]")


@dataclass(frozen=True)
class Item:
    """A request and its meaning.

    Attributes:
        prompt: the request.
        response: the tree.
        form: the tree with its fillings left out.
        domain: a rule's name.
    """

    prompt: str
    response: str
    form: str
    domain: str


def read_grammar(text: str) -> dict[str, list[str]]:
    """Alternatives by rule."""
    rules = dict(line.split(" = ", 1) for line in text.splitlines() if line)
    return {name: alternatives.split(" | ") for name, alternatives in rules.items()}


def draw(rules: Mapping[str, list[str]], rng: random.Random) -> Item:
    """An item by chance."""
    domain = rng.choice(rules["request"])[1:-1]
    pieces = list(_expand(rules, rng, rng.choice(rules[domain])))
    response = _spaced("".join(text for text, _ in pieces))
    prompt = _spaced(_BRACKET.sub(" ", response))
    return Item(f"{prompt}\n", response, _spaced("".join(form for _, form in pieces)), domain)


def _expand(rules: Mapping[str, list[str]], rng: random.Random, alternative: str) -> Iterator[tuple[str, str]]:
    """An alternative written out, piece by piece: as in the tree, and as in its form."""
    at = 0
    for found in _REFERENCE.finditer(alternative):
        literal = alternative[at : found.start()]
        yield literal, literal
        at = found.end()
        name, maybe = found.groups()
        if maybe and rng.random() < 0.5:
            continue
        chosen = rng.choice(rules[name])
        if name.startswith("@"):
            yield chosen, name
        else:
            yield from _expand(rules, rng, chosen)
    yield alternative[at:], alternative[at:]


def _spaced(text: str) -> str:
    return " ".join(text.split())


def is_held_out(form: str) -> bool:
    """Which file the items of a form go to."""
    return zlib.crc32(form.encode()) % HELD_OUT_SHARE == 0


def make(train: int, held_out: int, seed: int = 0) -> tuple[list[Item], list[Item]]:
    """Items to train on and items held out, each with sentences of its own."""
    rules, rng = read_grammar(GRAMMAR), random.Random(seed)
    kept: dict[bool, list[Item]] = {False: [], True: []}
    wanted = {False: train, True: held_out}
    seen: set[str] = set()
    while any(len(kept[which]) < wanted[which] for which in kept):
        item = draw(rules, rng)
        which = is_held_out(item.form)
        if item.prompt not in seen and len(kept[which]) < wanted[which]:
            seen.add(item.prompt)
            kept[which].append(item)
    return kept[False], kept[True]


def write(folder: Path, train: int, held_out: int) -> dict[str, object]:
    """Write both files; returns what is in them, in numbers.

    Raises:
        OutputError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts = dict(zip((TRAIN, HELD_OUT), make(train, held_out), strict=True))
    for name, items in parts.items():
        lines = [
            json.dumps({"prompt": item.prompt, "response": item.response, "domain": item.domain}) for item in items
        ]
        write_atomic(folder / name, "\n".join(lines) + "\n")
    return {
        name: {
            "items": len(items),
            "forms": len({item.form for item in items}),
            "domains": dict(Counter(item.domain for item in items)),
            "words_of_a_request": round(sum(len(item.prompt.split()) for item in items) / len(items), 1),
            "words_of_a_tree": round(sum(len(item.response.split()) for item in items) / len(items), 1),
        }
        for name, items in parts.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--train", type=int, default=40_000, help="items to train on")
    parser.add_argument("--held-out", type=int, default=1000, help="items held out")
    options = parser.parse_args()
    print(json.dumps(write(options.folder, options.train, options.held_out), indent=2))


if __name__ == "__main__":
    main()
