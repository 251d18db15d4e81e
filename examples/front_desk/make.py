"""Write the requests that `make chat` trains on and is scored on: `python examples/front_desk/make.py`.

A request is a phrasing with values in its gaps; its answer is JSON with the intent and those values. No value of test.jsonl
is in train.jsonl, and half of the test requests have phrasings that are not in train.jsonl either.
"""

import json
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
SEED = 20
TRAIN, TEST = 66, 48  # requests of each intent
Row = dict[str, Any]
Draw = Callable[[random.Random], str | int]


@dataclass(frozen=True)
class Intent:
    """A kind of request. keys: of its answer, in order. known: phrasings of both files. new: those of test.jsonl alone."""

    keys: Sequence[str]
    known: Sequence[str]
    new: Sequence[str]


INTENTS: Mapping[str, Intent] = {
    "order": Intent(
        keys=("quantity", "item", "name"),
        known=(
            "Please put {quantity} {item} on the account of {name}.",
            "{name} here. I would like to buy {quantity} {item}.",
            "Hi, we need {quantity} {item}, and the invoice goes to {name}.",
            "Could you send {quantity} {item}? My name is {name}.",
            "Order {quantity} {item} for {name}, please.",
            "We have run out of {item}. {name} wants {quantity} of them.",
            "I'm {name} and I want to order {item}, {quantity} in all.",
            "Another {quantity} {item} for {name}, as soon as you can.",
            "For {name}: {item}, {quantity} pieces.",
            "{quantity} {item} for my shop, please. Regards, {name}",
            "Would you set {quantity} {item} apart for {name}?",
            "Do you still have {item}? {name} could use {quantity}.",
            "Customer {name}, {quantity} times {item}.",
            "It's {name} again, and this time I need {quantity} {item}.",
            "Let {name} have {quantity} of the {item}.",
            "I was hoping to buy {item}. {quantity} would do, and my name is {name}.",
        ),
        new=(
            "{name} asks for {quantity} {item}.",
            "Can I get {quantity} {item}? Write the bill to {name}.",
            "Good morning, this is {name}. How about {quantity} more {item}?",
            "We are short of {item}: make it {quantity}, and bill {name}.",
        ),
    ),
    "booking": Intent(
        keys=("name", "people", "date", "time"),
        known=(
            "Please book a table for {people} on {date} at {time}. My name is {name}.",
            "{name} would like a table on {date} at {time} for {people} people.",
            "A table for {people}, {date}, {time}, in the name of {name}.",
            "Do you have room for {people} of us at {time} on {date}? It's {name}.",
            "Hello, {name} speaking. We are {people} and want to eat at {time} on {date}.",
            "Reserve for {name}: {date}, {time}, {people} guests.",
            "We'd like to come on {date}, around {time}, {people} people, name {name}.",
            "I want to book dinner on {date} for {people} at {time}, for {name}.",
            "Is there anything free on {date} for {people}, say at {time}? Ask for {name}.",
            "Table wanted: {name}, {people} persons, {time}, {date}.",
            "This is {name}. Put us down for {time} on {date}, {people} in all.",
            "My family and I, {people} altogether, hope to dine on {date} at {time}. {name}",
            "{people} people, {time}, {date}. The booking is for {name}.",
            "At {time} on {date}, {name} wants a table with {people} chairs.",
            "May I reserve under {name}? We'll be {people}, on {date}, {time}.",
            "We celebrate on {date}: {people} guests from {time}, host {name}.",
        ),
        new=(
            "Could {name} have a table for {people} at {time} on {date}?",
            "Keep {people} seats for {name} on {date} from {time}, please.",
            "On {date} we will be {people}, arriving at {time}. The name is {name}.",
            "{name} is coming at {time} on {date} with a party of {people}.",
        ),
    ),
    "reminder": Intent(
        keys=("task", "date", "time"),
        known=(
            "Remind me to {task} on {date} at {time}.",
            "On {date} at {time} I have to {task}. Please remind me.",
            "Don't let me forget to {task}: {date}, {time}.",
            "I need a reminder for {date}, {time}: {task}.",
            "Can you remind me at {time} on {date} to {task}?",
            "Set a reminder to {task} at {time} on {date}.",
            "Please make a note that I must {task} on {date} by {time}.",
            "At {time} on {date}, tell me to {task}.",
            "I'm to {task} at {time} on {date}, so send me a message then.",
            "{date}, {time}: {task}. Make sure that I do it.",
            "Please help me remember to {task} on {date}, say at {time}.",
            "I'd hate to miss it: {task} at {time}, {date}.",
            "Give me a shout at {time} on {date}; I should {task}.",
            "Reminder for me to {task}, on {date}, {time} sharp.",
            "When it is {time} on {date}, say that it is time to {task}.",
            "I have promised to {task} on {date}. Alert me at {time}.",
        ),
        new=(
            "I always forget to {task}. Ping me at {time} on {date}.",
            "Wake me up at {time} on {date}, I want to {task}.",
            "Put it in the calendar: {task}, {date}, {time}.",
            "Would you nudge me on {date} at {time} to {task}?",
        ),
    ),
    "return": Intent(
        keys=("order", "item", "reason"),
        known=(
            "I want to return the {item} from order {order} because {reason}.",
            "Order {order}: {reason}, so the {item} are going back.",
            "The {item} of order {order} are no good, {reason}. I'd like my money back.",
            "Hello, {reason}. I am sending back the {item} of order {order}.",
            "Please take back the {item}. It was order {order}, and {reason}.",
            "How do I return {item}? Order {order}, {reason}.",
            "I'm not happy with the {item}: {reason}. The order was {order}.",
            "About {order}: I would like to give back the {item} since {reason}.",
            "Regarding order {order}, the {item} must go back: {reason}.",
            "{order} contained {item}. They are coming back to you: {reason}.",
            "I bought {item} ({order}) and {reason}, so take them back.",
            "There's a problem with the {item} from {order}: {reason}.",
            "Because {reason}, please collect the {item} of order {order}.",
            "Return request: order {order}, {item}, {reason}.",
            "Your {item} disappointed me, {reason}. Which address do I post them to? It's order {order}.",
            "I received {item} today, but {reason}. My order is {order} and I want to return it.",
        ),
        new=(
            "Can I send the {item} back? I bought them with order {order} and {reason}.",
            "Sadly {reason}. Please refund the {item}, order number {order}.",
            "With {order} you sent me {item}, but {reason}. What now?",
            "I do not want to keep the {item} of {order}, as {reason}.",
        ),
    ),
    "delivery": Intent(
        keys=("item", "place", "date"),
        known=(
            "Please deliver the {item} to {place} on {date}.",
            "The {item} should arrive at {place} on {date}.",
            "Can you bring the {item} to {place} by {date}?",
            "On {date} the {item} have to be at {place}.",
            "We are at {place}. Send the {item} on {date}.",
            "Drop off the {item} on {date}, the address is {place}.",
            "I'd like the {item} brought to {place}, not before {date}.",
            "Delivery of the {item} please: {place}, {date}.",
            "Have the {item} delivered on {date}, to {place}.",
            "{place} is where the {item} belong, on {date}.",
            "When will the {item} come? {date} at {place} would be best.",
            "Take the {item} over to {place} for me on {date}.",
            "For {date}: {item}, to be carried to {place}.",
            "We moved to {place}, so bring the {item} there on {date}.",
            "Please see to it that {place} gets the {item} on {date}.",
            "I am expecting the {item} on {date}. My address is {place}.",
        ),
        new=(
            "Could the driver leave the {item} at {place} on {date}?",
            "My {item} go to {place}. I am at home on {date}.",
            "Ship the {item} so that they reach {place} on {date}.",
            "{date} would suit us for the {item}; we live at {place}.",
        ),
    ),
}


# --- values ----------------------------------------------------------------------------------------------------

MONTHS = "January February March April May June July August September October November December"

TRAIN_WORDS = {
    "first": "Anna Ben Carla David Elena Felix Greta Hassan Irene Jonas Karim Laura Marco Nadia Oscar Paula Rahul Sofia Tom "
    "Vera",
    "last": "Adams Brandt Costa Dubois Evans Fischer Gupta Hansen Ivanov Jensen Keller Lopez Meyer Novak Olsen Petrov Rossi "
    "Schmidt Tanaka Weber",
    "kind": "blue red wooden steel small large cotton leather plastic silver folding green",
    "thing": "mugs chairs lamps notebooks shelves towels kettles curtains backpacks mirrors plates cushions printers gloves",
    "street": "Mill Lane;Station Road;Oak Avenue;Church Street;Harbour View;Park Crescent;Queen Street;Bridge Road;Elm Grove;"
    "Market Square;King Street;Hill Road;Garden Close;Victoria Road",
    "task": "call the plumber;water the plants;pay the rent;pick up the parcel;send the report;book the flight;feed the cat;"
    "renew the passport;buy new batteries;clean the oven;write to the landlord;collect the children;sign the contract;"
    "order more paper;charge the camera;cancel the newspaper;return the library books;test the alarm",
    "reason": "they are too small;the zip is broken;the colour is wrong;they arrived late;one of them is missing;"
    "they are scratched;the box was open;I ordered them twice;they smell of paint;the handle came off;"
    "they do not match the photo;they are too heavy;the lid does not close;my wife does not like them",
}
TEST_WORDS = {
    "first": "Alice Bruno Clara Dmitri Emma Farid Gloria Henrik Ingrid Julia Kofi Lena Miguel Nora Omar Priya Rosa Stefan Theo "
    "Yusuf",
    "last": "Andersen Bauer Chen Diaz Engel Ferrari Garcia Hoffman Ito Jones Kowalski Larsen Moreau Nguyen Okafor Patel Quinn "
    "Silva Turner Walsh",
    "kind": "yellow black glass bamboo heavy narrow woollen paper copper white striped round",
    "thing": "bowls tables clocks pencils ladders blankets toasters carpets suitcases baskets forks pillows speakers scarves",
    "street": "River Lane;Castle Road;Birch Avenue;Abbey Street;Ocean View;Forest Crescent;Prince Street;Tower Road;Maple "
    "Grove;Cathedral Square;Duke Street;Valley Road;Orchard Close;Albert Road",
    "task": "phone the dentist;mow the lawn;renew the insurance;post the letter;finish the slides;rent a van;walk the dog;"
    "visit the bank;buy a birthday cake;repair the bicycle;answer the lawyer;fetch the laundry;check the tyres;"
    "print the tickets;defrost the freezer;empty the bins;invite the neighbours;back up the laptop",
    "reason": "they are too wide;the motor is dead;the size is wrong;they came without screws;half of them are cracked;"
    "they have stains;the seal was torn;I found cheaper ones;they make a strange noise;the paint is peeling;"
    "they look used;they are too thin;the plug does not fit;my boss changed his mind",
}


def split(text: str) -> list[str]:
    """The words of a list, or its phrases, which semicolons part."""
    return text.split(";") if ";" in text else text.split()


def draws(words: Mapping[str, str], remainder: int, letters: str, minutes: Sequence[int]) -> dict[str, Draw]:
    """How each value is drawn. remainder: of numbers, halved: one file has the even ones and the other the odd ones."""
    lists = {name: split(text) for name, text in words.items()}

    def number(rng: random.Random, least: int, most: int) -> int:
        return 2 * rng.randrange(least // 2, most // 2) + remainder

    return {
        "name": lambda rng: f"{rng.choice(lists['first'])} {rng.choice(lists['last'])}",
        "item": lambda rng: f"{rng.choice(lists['kind'])} {rng.choice(lists['thing'])}",
        "place": lambda rng: f"{number(rng, 2, 98)} {rng.choice(lists['street'])}",
        "task": lambda rng: rng.choice(lists["task"]),
        "reason": lambda rng: rng.choice(lists["reason"]),
        "quantity": lambda rng: number(rng, 2, 90),
        "people": lambda rng: number(rng, 2, 14),
        "date": lambda rng: f"{number(rng, 2, 28)} {rng.choice(split(MONTHS))}",
        "time": lambda rng: f"{rng.randrange(7, 22)}:{rng.choice(minutes):02}",
        "order": lambda rng: f"{rng.choice(letters)}-{number(rng, 1000, 9998)}",
    }


VALUES: Mapping[str, Mapping[str, Draw]] = {  # no value of one file is a value of the other
    "train": draws(TRAIN_WORDS, 0, "ABDFGHKM", (0, 10, 20, 30, 45)),
    "test": draws(TEST_WORDS, 1, "CELPRSTW", (5, 15, 25, 35, 40)),
}


# --- files -----------------------------------------------------------------------------------------------------


def requests(
    rng: random.Random, intent: str, phrasings: Sequence[str], values: Mapping[str, Callable[[], Any]]
) -> Iterator[Row]:
    """Requests of an intent without end, each phrasing in turn."""
    while True:
        for phrasing in rng.sample(phrasings, len(phrasings)):
            chosen = {key: values[key]() for key in INTENTS[intent].keys}
            request = phrasing.format(**chosen)
            answer = json.dumps({"intent": intent, **chosen})
            yield {
                "messages": [
                    {"role": "user", "content": request[0].upper() + request[1:]},
                    {"role": "assistant", "content": answer},
                ]
            }


def rows(part: str, phrasing: str, each: int, rng: random.Random) -> list[Row]:
    """Different requests, `each` of every intent, with the values of `part` and the phrasings that are "known" or "new"."""
    values = {key: (lambda draw=draw: draw(rng)) for key, draw in VALUES[part].items()}
    found: dict[str, Row] = {}
    for name, intent in INTENTS.items():
        endless, wanted = requests(rng, name, getattr(intent, phrasing), values), len(found) + each
        while len(found) < wanted:
            row = next(endless)
            found[row["messages"][0]["content"]] = row
    return list(found.values())


def write(path: Path, lines: Sequence[Row]) -> None:
    """A row a line."""
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def main(folder: Path = FOLDER) -> int:
    """Write both files."""
    rng = random.Random(SEED)
    train = rows("train", "known", TRAIN, rng)
    rng.shuffle(train)
    test = [row | {"phrasing": phrasing} for phrasing in ("known", "new") for row in rows("test", phrasing, TEST // 2, rng)]
    rng.shuffle(test)
    write(folder / "train.jsonl", train)
    write(folder / "test.jsonl", test)
    return 0


if __name__ == "__main__":
    sys.exit(main())
