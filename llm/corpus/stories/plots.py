"""The plots: what can happen, as templates for the telling program (`compiler.py` explains the marks).

Every plot has a wish, something in its way, a helper, a turn, and an ending that pays the wish off. Nearly every
phrase holds a freely chosen word; between them stand the facts that a reader has to remember: who is who, who has the
thing now, who has gone, what was wished for, where they are, what they ate, how many there were.

`PARTS` are the templates by name; `$story` is the whole source. Each plot begins in its own words, so that the text
itself tells the plot at the moment when it begins to matter.
"""

OPENINGS = {
    "opening": """
[In {a:scenic} {land} lived {name=A}, {a:trait} {A.girl} with {a:look} {container} of {look} {s:trifle}.
|Once there was {a:trait} child called {name=A} {surname}, fond of {topic}, {game} and {look} {s:trifle}.
|Long ago, in {a:scenic}, {scenic} {land}, {a:trait} {trade} had {a:trait} child called {name=A}.
|The {trait} {trade} of {a:scenic} {land} had {a:trait}, {trait} child, {name=A}.
|There once lived {a:trait} child in {a:scenic}, {scenic} {land}, {name=A} {surname}.
|Little {name=A} [was {a:trait} {A.girl} from {a:scenic} {land}, fond of {game}, {sound} and {topic}.
    |and {A.his} {trait} {kin} lived between {a:scenic} {land} and {a:scenic} {land}.
    |lived in {a:scenic}, {colour} house that smelled of {smell} and {smell}.
    |{surname} knew more about {topic} and {topic} than any {trait} {trade}.]]
""",
    "when": "[one {sky} {hour}|on {a:sky} {day}|early in {month}]",
    "When": "[One {sky}, {sky} {hour}|On {a:sky}, {sky} {day}|Early in {month}]",
    "way": """[past {s:flower} and {s:flower}|under {s:tree} and {s:tree}|through {storm} and {storm}
|along {a:scenic}, {scenic} road]""",
    "folk": """[{a:trait} {trade} [with {a:look} {trifle}|in {look} slippers]
|the {trait} {trade}'s {trait} {%.daughter}]""",
    # Whatever has to be remembered is said two or three times when it comes in, as nursery tales do: a reader who is
    # still learning to look back learns it here, where the word stands a step or two behind.
    "call": """"Oh {%}, {%}, {%}!" {said} [{a:trait} {trade}|everybody {adv}].""",
}

ENDINGS = {
    "moral": """
[And so {virtue} and {virtue} were worth more than {riches} or {riches}.
|Since then all the {scenic}, {scenic} {land} has praised {virtue} and {virtue}.
|For {virtue} and {virtue} are better than {riches}, {riches} or {riches}.
|Where {s:flower} and {s:flower} bloom, {trait} people still tell this tale.
|That night {A} dreamed {adv} of {topic}, {topic} and {look} {s:trifle}.
|They were {mood}, {mood} and {mood} all {month}.
|Ever since, {A} has told {trait} children about {topic}, {topic} and {topic}.]
""",
}

PLOTS = {
    # A thing is lost; a beast has it; it is won back with food.
    "lost": """
But $when {A} lost {A.his} {toy=thing}, {A.his} {@thing}, {A.his} {look} {@thing},
[{a:look} gift from {a:trait} {kin}.|and {gesture} {adv}.]
Under the {look} {nook} lay only {s:trifle}, {s:trifle} and {a:look} {trifle}. ¶
Then {name=B}, $folkB, {moved} by. $callB "{C:furry} {s:beast} like {look} things," {said} {B}.
They {moved} $way to {a:scenic}, {scenic} {spot}.
There sat {a:beast=beast}, {a:@beast}, {a:furry} {@beast}, {adv} hugging the {@thing}. ¶
So {A/B=Holder} {adv} gave the {@beast} {food=food}, {@food}, {tasty} {@food}, and took the {@thing}.
While it ate the {@food}, {Holder} {gesture}, {gesture} and put the {@thing} into {a:look} {container}.
$moral
""",
    # A present is made for a friend, with a tool lent for food.
    "present": """
In {month} was the birthday of {name=B}, {A.his} {trait}, {trait} friend.
$callB "I wish for {a:toy=wish}, {a:@wish}, {a:look} {@wish}," {said} {B} {adv}. ¶
So {A} {moved} $way to {a:scenic}, {scenic} {spot}, where {name=C}, $folkC, was {adv} {chore}. $callC
"Take this {tool=tool}, this {@tool}, this {look} {@tool}, for {food=food}, {@food}, {tasty} {@food}," {said} {C}.
{A} {adv} brought the {@food}, and with the {@tool} {A?s} worked {adv} and {adv} until {hour}. <gone C> ¶
Among {look} {s:trifle} and {s:trifle}, {B} found the {@wish}, {look} and {look}. <Holder=B>
{Holder} {gesture}, {gesture} and {adv} took it home.
$moral
""",
    # A river, a wall or a gorge is in the way; a helper takes a fee, and goes.
    "crossing": """
Far away, by {a:spot=spot}, {a:@spot}, {a:scenic} {@spot}, {A.his} {kin=kin}, {A.his} {@kin}, {A.his} {trait} {@kin}
wished for {food=wish}, {@wish}, {tasty} {@wish}.
$When {A} put it and {count=count}, {@count}, {@count} {s:trifle=fee}, {@count} {look} {s:@fee}
into {a:look} {container}, and {moved} $way.
But {a:scenic} [river|wall|gorge|hedge] was in the way. ¶
There {name=B}, $folkB, was {adv} {chore}. $callB "Give me your {@count} {s:@fee}," {said} {B}.
With {a:look}, {look} {tool} {B.he} {adv} helped {A}, {gesture} and {moved} away. <gone B> ¶
At the {@spot}, {A.his} {@kin} tasted the {@wish} and {gesture}. "{C:tasty} and {tasty}!" {said} {A} {adv}.
$moral
""",
    # Trades lead to the thing that was wished for.
    "trade": """
What {A} wished for was {a:toy=wish}, {a:@wish}, {a:look} {@wish}. But {A.he} had only {food=food}, {@food},
{tasty} {@food}, and {look} {s:trifle}.
$When {A?s} met {name=B}, $folkB. $callB {A} {adv} gave {B} the {@food}.
"Take my {tool=tool}, my {@tool}, my {look} {@tool}," {said} {B}, {gesture} and {moved} home. <gone B> ¶
Now {A} {moved} $way to {a:scenic}, {scenic} {spot}.
There {name=C}, $folkC, was {adv} {chore}. $callC <Holder=C> {Holder} took the {@tool}, {gesture} and {gesture}. ¶
Out of {a:look} {container} came {a:@wish}, {look} and {look}. "You are {trait} and {trait}," {said} {C} {adv}.
<Holder=A> {Holder} held it {adv} and {adv}.
$moral
""",
    # Two friends quarrel over a thing, one leaves, and food mends it.
    "quarrel": """
Next door lived {name=B}, $folkB. $callB The two shared {a:colour=colour}, {@colour}, {@colour} {toy=thing}, {a:@thing},
{a:look}, {@colour} {@thing}.
But $when {A/B=Holder} {adv} took the {@thing} to {a:scenic}, {scenic} {spot}, and {gesture}.
"You are {trait} and {trait}!" {said} {A} {adv}. {B} {gesture}, and {moved} home $way. <gone B> ¶
Now {A} sat alone, {mood}, {mood} and {mood}, and thought of {topic}, {topic} and {B}.
By {hour} {A?s} {moved} to {B} with {food=food}, {@food}, {tasty} {@food}. <back B> ¶
"I am {mood} and {mood}," {said} {A} {adv}. {B} ate the {@food}, {gesture} and {gesture}.
Then {Holder} {adv} shared the {@colour} {@thing}.
$moral
""",
    # A contest for a prize.
    "contest": """
Every {month}, {trait} and {trait} children met in {a:scenic}, {scenic} {spot}. The prize was {a:toy=wish},
{a:@wish}, {a:look} {@wish}.
$When {A} {moved} there in {a:colour=colour}, {@colour}, {@colour} {cloth=cloth}, {a:@cloth},
{a:look}, {@colour} {@cloth}.
There stood {name=B}, $folkB. $callB "I shall win," {said} {B} {adv}. ¶
The contest was in {chore}, {chore} and {game}. {name=C}, {a:trait}, {trait} {trade}, counted {adv}. $callC
{A} {gesture} {adv}, and {B} {gesture} {adv} and {adv}.
"Today {A/B=Winner} has won, with {count} points," {said} {C}. ¶
Then {C?s} {adv} gave {Winner} the {@wish}, {look} and {look}.
{Winner} {gesture} and hid it under {a:@colour} {@cloth}.
$moral
""",
    # A beast is rescued, with a tool fetched by a friend.
    "rescue": """
Not far off was {a:spot=spot}, {a:@spot}, {a:scenic} {@spot}, where {A} looked for {look} {s:trifle} and {s:flower}.
In the {storm} lay {a:beast=beast}, {a:@beast}, {a:furry} {@beast}, hurt, {mood} and {mood}.
{A?} {gesture} {adv}, and {moved} $way to {name=B}, $folkB. $callB ¶
"There is {a:@beast} in the {@spot}!" {said} {A} {adv}.
{B} {gesture}, and {adv} brought {a:tool=tool}, {a:@tool}, {a:look} {@tool}. <Holder=B>
{Holder} pushed the {@tool} under it, and {A} pulled {adv} and {adv}. ¶
Soon it was free. {B} {gesture} and {moved} home with the {@tool}. <gone B>
But the {@beast} ate {tasty} {food} with {A}, {furry} and {furry}.
$moral
""",
    # Two on the road in bad weather; shelter, and a coat for one of them.
    "storm": """
With {name=B}, $folkB, {A} {moved} $way $when. $callB They carried {food=food}, {@food}, {tasty} {@food},
and {a:tool=tool}, {a:@tool}, {a:look} {@tool}.
Then came {storm}, {storm} and {storm}. "I am {mood} and {mood}," {said} {B} {adv}. ¶
So {A/B=Holder} took the {@tool}, and they {moved} to {a:scenic}, {scenic} {spot}.
There {name=C}, $folkC, was {adv} {chore}. $callC
"You look {mood}, {B}!" {said} {C} {adv}, and brought {a:colour=colour}, {@colour}, {@colour} {cloth=cloth}, {a:@cloth},
{a:look}, {@colour} {@cloth}.
They ate the {@food}, and talked of {topic}, {topic} and {topic}. <gone C> ¶
Now {Holder} carried the {@tool}, {A/B=Winner} wore the {@colour} {@cloth}, and both {moved} home, {mood} and {mood}.
$moral
""",
    # Food vanishes; the thief is found, and forgiven.
    "thief": """
For {count=count}, {@count}, {@count} days, {food=food}, {@food}, {tasty} {@food}, had vanished
from {a:spot=spot}, {a:@spot}, {a:scenic} {@spot}.
"The thief is {name=B}, that {trait}, {trait} {trade}!" {said} {A} {adv}. $callB
"After {@count} days I am {mood} and {mood}," {said} {B} {adv}. ¶
$When {A?s} brought {a:tool=tool}, {a:@tool}, {a:look} {@tool}, and both {moved} to the {@spot}.
They sat {adv} between {look} {s:trifle} and {s:flower}, {mood} and {mood}.
By {hour}, {a:beast=beast}, {a:@beast}, {a:furry} {@beast}, {moved} in and ate the {@food}. ¶
So {A/B=Holder} {adv} caught the {@beast} with the {@tool}. "It is only {mood} and {mood}," {said} {B} {adv}.
{Holder} {gesture}, {gesture} and gave it {a:look}, {colour} {container} of {@food}.
$moral
""",
    # A beast is wished for, and comes.
    "pet": """
Nothing would have made {A} so {mood} and {mood} as {a:beast=wish}, {a:@wish}, {a:furry} {@wish}.
"{C:furry} beasts are {mood}," {A.his} {trait}, {trait} {kin} {said} {adv}. ¶
$When {A?s} {moved} $way to {a:scenic}, {scenic} {spot}.
There {name=B}, $folkB, was {adv} {chore}. $callB "I wish for {a:@wish}," {said} {A} {adv}.
"Bring me {count=count}, {@count}, {@count} {s:trifle=fee}, {@count} {look} {s:@fee},
and {food=food}, {@food}, {tasty} {@food}," {said} {B}. ¶
Now {A} {gesture}, and {adv} brought the {@food} and the {@count} {s:@fee}.
Then out of {a:colour} {nook} {moved} {a:@wish}, {furry} and {furry}.
{B} {gesture} and {moved} away. <gone B> The {@wish} {adv} kissed {A}.
$moral
""",
}

_STORY = "$opening $callA [" + " | ".join(f"${plot}" for plot in PLOTS) + "]"

PARTS = {**OPENINGS, **ENDINGS, **PLOTS, "story": _STORY}
for _role in "ABC":
    for _name in ("folk", "call"):
        PARTS[f"{_name}{_role}"] = OPENINGS[_name].replace("%", _role)
del PARTS["folk"], PARTS["call"], PARTS["folkA"]
