"""The words of the stories, in classes ("bags") whose members can stand for each other in every template.

Few and large classes: what a slot may hold is learnt once for the whole class, and each free slot adds five to seven
bits that no model can foresee. Classes whose words must be remembered (names, `toy`, `tool`, `spot`, `beast`, `food`,
`cloth`, `colour`, `count`) are used for nothing else, so that a story holds few words that could be mixed up.
"""

from llm.corpus.stories.bags import Bag

_GIRLS = "ada alice clara daisy emma flora greta ida ivy lucy maya nora rosa ruby stella wilma"
_BOYS = "adam ben carl david felix george hugo jack leo max noah oscar paul sam tom victor"

_LISTS = {
    # A person's nature: before "girl", "friend" and trades, and after "You are".
    "trait": """
kind brave shy clever cheerful gentle stubborn curious patient honest quiet dreamy careful bold polite wise friendly
funny proud lazy loyal merry modest nimble noisy playful sensible serious silly sleepy sly smart solemn spirited stern
strong sturdy tender tidy timid willing witty calm careless chatty clumsy daring earnest fearless grumpy hearty
helpful jolly bashful lonely messy moody nosy plucky restless rough sweet tall trusting untidy young freckled small
thin round rosy quick sharp keen fair wary slim hardy fussy fearful jumpy mild meek neat old poor rich rude shrewd
sober spry spoilt subtle sullen swift thrifty tough vain wistful able active awkward bossy bookish brisk candid
charming cool cosy crafty dainty decent dull eager elegant famous firm foolish giddy gifted graceful grateful gruff
handsome heroic hopeful humble idle just naughty noble peaceful perky placid pleasant puzzled rash simple skilful sour
spiteful tricky unlucky useful wiry
""",
    # How somebody feels: after "I am" and standing free.
    "mood": """
happy sad tired glad cross hungry proud lonely cold afraid angry worried thirsty ashamed excited sleepy hopeful
puzzled sorry warm brave nervous cheerful content eager anxious grateful jealous bored weary dizzy gloomy joyful merry
peaceful restless shy startled uneasy upset bitter calm homesick confused furious grumpy helpless pleased relieved
stubborn thankful thrilled troubled unhappy weak strong foolish clever grim mad safe sick sore tense wild wise alert
alive amazed amused awkward baffled bold bruised busy charmed cosy curious dazed doubtful downcast dreamy drowsy
ecstatic envious faint fearful fearless forlorn fresh giddy gleeful guilty humble inspired jolly jumpy lucky mellow
muddled pensive playful quiet rejected scared shaken shocked silly soothed spirited sulky tearful tender tranquil
vexed watchful wistful
""",
    # How something is done.
    "adv": """
slowly quickly quietly softly gladly carefully gently happily eagerly calmly bravely loudly suddenly firmly kindly
proudly politely patiently shyly sadly boldly brightly busily cleverly clumsily crossly curiously daintily dreamily
earnestly fearfully fiercely fondly foolishly gleefully gloomily greedily grimly grumpily hastily heartily heavily
helpfully honestly hopefully jokingly joyfully keenly lazily lightly lovingly merrily mildly miserably modestly
nervously nicely nimbly noisily playfully promptly rudely secretly selfishly seriously sharply silently sleepily
smoothly solemnly speedily steadily sternly stiffly sweetly swiftly tenderly tidily timidly uneasily urgently warmly
weakly wearily wildly wisely anxiously awkwardly briskly neatly nobly tearfully tensely willingly bitterly blindly
bluntly candidly casually cheekily coldly coyly dizzily drowsily dutifully elegantly enviously excitedly frankly
furiously gallantly gaily giddily grandly guiltily gruffly haltingly hoarsely humbly hurriedly instantly intently
jauntily jovially knowingly languidly loyally painfully pitifully pompously prudently quaintly rashly roughly ruefully
sleekly slyly snugly soberly sourly stoutly strangely sulkily tactfully vaguely valiantly wistfully wittily zealously
""",
    # Went, in many ways: all take "to", "past", "through", "home" and "away".
    "moved": """
walked ran went hurried wandered rushed marched strolled skipped crept climbed raced tiptoed trotted stumbled hopped
plodded sneaked dashed rambled scurried slipped strode tramped trudged galloped hobbled limped shuffled sped waddled
bounced dawdled glided jogged pranced stepped stomped twirled wobbled hastened inched leapt lumbered lurched moved
plunged scooted sprang sprinted tottered traipsed trekked whirled wriggled trundled
""",
    # Said, in many ways; all take a sentence in quotation marks and a name behind them.
    "said": """
said cried shouted laughed murmured answered called sighed begged muttered giggled grumbled mumbled whined yelled
gasped shrieked chuckled hummed moaned panted piped pleaded sang snapped sniffed sobbed squealed added agreed argued
boasted breathed bubbled cheered chirped cooed crowed declared grinned grunted guessed hissed insisted joked nodded
prayed promised rasped remarked replied roared scoffed scolded smiled snorted teased thought vowed wailed wheezed
wondered yelped
""",
    # Does something small while talking or waiting.
    "gesture": """
smiled nodded laughed blushed frowned sighed shivered grinned blinked giggled sneezed yawned winked coughed trembled
jumped bowed beamed shrugged listened waited wept sniffed whistled hummed clapped waved paused knelt crouched gulped
curtsied chuckled squinted twirled breathed cheered crowed danced dozed gaped gazed grimaced hopped huffed peered
pointed pondered prayed puffed sang sat scowled shook shouted skipped snored spun squealed squirmed stood stooped
swayed thought twitched waddled wobbled wondered wriggled
""",
    # What a place is like.
    "scenic": """
old quiet green wide dark little narrow windy lonely dusty muddy shady sunny sleepy steep foggy grassy rocky sandy
snowy leafy mossy misty crooked busy hidden empty distant peaceful haunted famous frozen golden hilly gloomy silent
stony swampy thorny wild bare bleak bright chilly cosy damp dim drowsy dreary flat flowery fragrant friendly gentle
grand grey harsh humble icy lovely lush noisy open pale pleasant plain pretty ragged rainy salty secret shabby
slippery smoky sunlit tiny tranquil vast warm winding airy autumnal blue bold breezy brown calm charming cheerful
clear cloudy cold cool curious dismal dreamy dry dull fair faded fine free fresh frosty gaunt glorious graceful hazy
heavy homely hot hushed joyful jagged lazy long lost low lucky mellow mild mighty moonlit muddled murky nameless noble
pink proud quaint rich royal sad silver simple small snug soft sombre soggy splendid square sticky still strong sturdy
sultry sweet tall tame twisted uneven wet white wondrous yellow zigzag
""",
    # Where people live.
    "land": """
village valley town harbour island hill coast forest city farm mountain moor castle country river bay lake marsh
meadow plain port shore street canyon cliff heath highland inn jungle lagoon market mill monastery oasis parish ridge
settlement township vineyard wood cove delta dale fen fjord glen hamlet abbey commune dell dune estate fort garden
glade grove hut inlet isle kingdom outpost park ranch resort shire swamp tundra vale
""",
    # Places where things happen.
    "spot": """
bridge barn well orchard pond stable bakery cave chapel cottage garden kitchen library lighthouse market meadow
mill palace pier school temple tower wharf windmill
""",
    # Things a child would love to have.
    "toy": """
kite drum ball doll flute puppet whistle marble bell book boat bicycle sledge trumpet violin guitar harp mask
crown necklace ring robot lantern train clock
""",
    # Things to work with.
    "tool": """
rope ladder spade hammer net bucket axe saw shovel rake broom pole torch candle knife key chain basket barrel
blanket needle oar kettle umbrella
""",
    # Beasts, wild and tame.
    "beast": """
fox goose cat dog goat hare owl pony duck frog bear badger donkey deer hedgehog lamb mole monkey mouse parrot
pig raven squirrel turtle
""",
    # Food, uncountable or in the plural: never with an article.
    "food": """
bread cheese soup honey cake butter milk porridge salad rice fish corn apples pears plums cherries nuts peas
potatoes pancakes dumplings pies figs chocolate
""",
    # Things to wear.
    "cloth": """
coat scarf hat cap cloak dress shirt apron jacket vest bonnet gown hood shawl tunic ribbon
""",
    "colour": """
red blue green yellow white black brown purple pink orange golden silver scarlet ivory
""",
    "count": "three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen twenty",
    # What things are like.
    "look": """
small shiny old wooden big heavy round pretty smooth tiny painted strange broken golden little simple bent carved
cheap clean cracked crooked curious dainty dented dusty elegant faded fancy fine fragile funny huge light long lovely
lucky mended modern narrow neat odd plain rare rough rusty spotted square striped strong sturdy thick thin useful worn
bare black blunt boxy brass bright bronze bulky clever clumsy coarse cool copper cosy costly dirty dull exotic faint
famous firm flimsy floral flowery fresh frilly furry fuzzy gilded glassy glossy good grand grubby hard humble iron
jagged jolly lacy large leather linen loose lumpy magic matted metal mild nice oval padded pale papery plump pointed
proper proud quaint quiet ragged rich robust rotten russet sad sandy satin scented scruffy secret shabby shaky sharp
silent silken silly singed sleek slender slim slimy snug soft soggy solid sooty spare spiky steel sticky stiff stubby
sweet tall tight torn tough tricky twisted ugly uneven velvet vast warm waxy weird wide wiry zigzag
""",
    # What beasts are like.
    "furry": """
hungry little old young fat wet clever lame tame wild spotted striped fluffy gentle lost lazy greedy nervous limping
shaggy sleepy sly swift tiny tired thin woolly white black brown grey scruffy skinny soft muddled brave thirsty active
alert anxious awkward bashful bold calm careful clumsy cross curious dainty drowsy dusty eager fearful fine foolish
funny fussy giddy grubby grumpy hardy huge humble jolly jumpy kind lonely loyal lucky matted meek merry mild moody
muddy naughty nimble pale patient perky playful plucky plump poor proud quick quiet rough round shrewd shy silent
silly silvery skilful sleek slim slow small smart smooth snoring sooty stiff stout strange stray strong sturdy sulky
sullen tall tearful tender timid tough unhappy unlucky velvety weak weary wiry worried yellow
""",
    # Weather and times.
    "sky": """
cold warm rainy windy sunny foggy misty stormy snowy cloudy bright grey frosty mild hot chilly cool damp dry dusty
fair fine fresh gloomy hazy icy lovely muggy quiet rough sticky still sultry wet wild balmy bleak blowy blue breezy
calm clear close crisp dim dismal grim gusty heavy humid hushed light long lonely mellow murky pink rosy serene sharp
sleepy sleety slushy soft soggy sombre steamy sunlit
""",
    "day": "Monday Tuesday Wednesday Thursday Friday Saturday Sunday",
    "hour": "morning evening afternoon night noon dawn dusk sunrise sunset midday midnight daybreak",
    "month": "January February March April May June July August September October November December",
    # What comes from the sky on a bad day.
    "storm": """
rain snow wind fog hail mist frost ice drizzle mud sleet dust showers squalls hailstones waves shadows dew puddles
""",
    # Growing things; all with a plural in -s, told of one by one or in bunches.
    "tree": """
oak pine willow apple_tree birch beech elm maple fir cedar ash alder lime_tree poplar pear_tree plum_tree cherry_tree
fig_tree hawthorn hazel_bush holly_bush juniper larch lilac_bush palm rose_bush rowan spruce walnut_tree yew sycamore
cypress elder_bush acacia aspen bay_tree blackthorn box_tree buckthorn laurel linden magnolia teak
""",
    "flower": """
daisy rose tulip violet lily poppy buttercup bluebell daffodil snowdrop primrose marigold sunflower pansy carnation
cornflower cowslip crocus dahlia dandelion foxglove geranium hyacinth iris jasmine lavender lupin orchid peony petunia
waterlily anemone begonia aster bellflower camellia celandine gardenia harebell hollyhock hydrangea larkspur magnolia
oleander oxlip speedwell zinnia mallow teasel yarrow
""",
    # What one likes to hear.
    "sound": """
bells birds music laughter rain crickets drums flutes frogs geese hooves horns owls sheep singing thunder trumpets
voices water whistles wheels bees hammers leaves fiddles cows doors birdsong clapping crows cuckoos doves ducks
engines gulls harps hums jackdaws larks mice pans peacocks pipes pigs ravens robins rustling saws sirens songs streams
thrushes trains wasps
""",
    # What a house smells of.
    "smell": """
hay smoke roses honey soap leather cinnamon grass rain mint pine salt seaweed straw thyme vanilla vinegar wax wool
coffee earth garlic ginger herbs ink lavender lemons moss nutmeg onions paint pepper sawdust almonds apples bacon beer
berries butter chalk cider cloves clover cocoa fennel fir gravy heather ivy jam lilac mud mustard oil oranges parsley
peaches peat plums pumpkin rosemary sage spice stables sugar tea toffee violets
""",
    # Small things out of pockets, sacks and drawers.
    "trifle": """
button candle_end thimble cork acorn stamp map nutshell pin spool brush comb fish_hook leaf match notebook paper_clip
penny pine_cone postcard seed seashell sweet ticket toffee_tin tooth zipper bone bottle_top doorknob fir_cone
horseshoe letter mousetrap paper_hat bag bean bobbin boot bowl brick bud buckle bulb can charm clasp clip cord crayon
cube cup dot eggcup envelope eraser fan flag flint glove hairpin helmet hinge hook hourglass icicle kettle keyring
knot label lid lock medallion mug napkin nut peg pen petal pipe plate pocket poem rag receipt root ruler saucer screw
shoe shoelace shuttle sieve sign skewer sponge spring stone strap tack tag teabag teacup thorn tile twig vase wheel
wreath
""",
    # What people do for a living.
    "trade": """
baker miller smith farmer tailor fisherman doctor teacher shepherd gardener carpenter cook weaver potter painter
sailor postman butcher cobbler clockmaker blacksmith ferryman forester hunter innkeeper jeweller judge juggler
librarian mason merchant musician nurse peddler pilot poet printer roofer saddler shoemaker soldier tinker watchman
woodcutter beekeeper bookbinder cowherd goldsmith hatmaker barber brewer builder butler chemist clown coachman cowboy
dancer engineer explorer falconer fiddler florist glazier grocer groom harper herald inventor knight locksmith
magician mapmaker organist oarsman pedlar physician piper ploughman porter puppeteer ranger ropemaker sailmaker
scholar scribe sculptor steward sweep tanner toymaker tutor verger vet wigmaker zookeeper
""",
    "kin": """
grandmother grandfather mother father aunt uncle cousin sister brother godmother godfather neighbour stepmother
stepfather nephew niece teacher granddaughter guardian great-aunt great-uncle nurse tutor landlady
""",
    # Games, for the hours when all is well.
    "game": """
tag marbles hopscotch leapfrog chess dominoes football ninepins dice charades skittles draughts riddles spillikins
forfeits horseshoes badminton billiards bridge conkers cricket curling darts hockey hoopla jacks juggling quoits
rounders sack_races solitaire tiddlywinks tug-of-war yachting
""",
    # What one dreams of, talks of and tells tales of.
    "topic": """
dragons giants stars pirates ghosts kings ships witches dwarfs elves fairies treasure whales knights wolves mermaids
castles trains planets monsters islands holidays summer winter bees clouds rivers oceans rainbows shadows magic
acrobats angels ants apples bats bears beetles bridges camels caves cats cities clowns dogs donkeys dreams drums
eagles feasts flying foxes frogs gardens gnomes goblins hats heroes horses jokes jungles kites lions maps masks mazes
mice mirrors moles monkeys music ogres owls parrots puzzles queens rain riddles rockets sailors school sharks sheep
shells snails snakes snow soup spies storms tigers towers trees trolls wheels
""",
    # What the moral is about.
    "virtue": """
kindness patience courage honesty hope trust truth love wisdom laughter sharing modesty gratitude mercy loyalty
diligence humour faith pity bravery calm candour care caution charity comfort curiosity decency devotion fairness
fidelity goodness grace harmony humility joy justice mirth peace respect tolerance valour wit
""",
    # What the moral is not about.
    "riches": """
gold silver diamonds money rubies pearls jewels crowns castles treasure emeralds palaces medals fame victory silk
velvet furs coins carriages sapphires applause brooches copper estates feasts flattery furniture glory ivory mansions
marble necklaces porcelain platinum praise prizes pomp rank sables satin splendour swords titles trophies vineyards
youth
""",
    # Everyday work.
    "chore": """
sweeping cooking sewing digging reading fishing knitting baking painting singing gardening cleaning weaving writing
mending milking raking washing whittling dusting ironing polishing sawing scrubbing spinning stitching whistling
drying ploughing darning packing sorting stacking studying brewing carting chopping churning climbing composing
cutting feeding gathering gluing grooming hammering herding hoeing hunting kneading lacing ladling mowing mixing
moulding napping peeling pickling plucking pruning quilting reciting roasting shopping sketching sowing stirring
stuffing threshing tidying watering weeding winding yodelling
""",
    # Things in a room that something can lie under or come out of.
    "nook": """
table bed chair bench stove cupboard shelf basin bookcase chest cradle desk drawer fireplace mat pillow rug sofa
staircase trunk wardrobe washtub bathtub armchair hearth mantelpiece bookshelf bread_bin bunk coat_rack cot crib
cushion dresser easel footstool gramophone hamper hatstand haycart kettle manger pantry pew pillowcase quilt settle
sideboard stool stepladder tablecloth tub washstand water_butt woodpile workbench
""",
    # What things are kept and carried in.
    "container": "basket bag box sack jar bowl bucket crate pot jug bundle tin barrel tray parcel case",
    # What food is like.
    "tasty": """
warm fresh sweet hot salty spicy soft crisp crunchy creamy juicy tasty ripe golden sticky steaming buttery tangy
tender simple rich smoky buttered candied chilled crusty fragrant fruity garlicky gingery hearty heavenly homely
honeyed luscious mellow mild minty nutty oily peeled peppery pickled powdery roasted salted savoury scented sliced
smoked spiced splendid sugared sugary syrupy tart tempting toasted velvety zesty
""",
    # Family names, heard once and free to be forgotten.
    "surname": """
Hill Wood Reed Field Brook Stone Ford Marsh Green Brown White Black Grey Bell Hart Fox Lamb Crane Swift Wren Bird
Finch Drake Pike Hare Bear Wolfe Lake Rivers Banks Bridge Hall Mill Lane Park Gates Wells Pond Moor Heath Dale Glen
Cliff Frost Snow Winter Summer May Moon Flood Good Bright Sharp Little Strong Young Noble King Knight Page Squire
Bishop Baker Miller Smith Cooper Carter Potter Turner Tanner Taylor Weaver Mason Cook Piper Thorn Bush Ash Birch Nutt
Berry Peach Plum Salt
""",
}


def _split(words: str) -> list[str]:
    return [word.replace("_", " ") for word in words.split()]


GIRLS = frozenset(name.capitalize() for name in _split(_GIRLS))
BOYS = frozenset(name.capitalize() for name in _split(_BOYS))

# Girls and boys in turn, so that neither the order nor the weights favour one of them.
_NAMES = sorted(GIRLS | BOYS)

BAGS = {name: Bag(name, _split(words)) for name, words in _LISTS.items()}
BAGS["name"] = Bag("name", _NAMES, flat=True)
BAGS["count"] = Bag("count", _split(_LISTS["count"]), flat=True)
