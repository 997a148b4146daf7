"""The words of the stories, in classes ("bags") whose members can stand for each other in every template.

Few and large classes: what a slot may hold is learnt once for the whole class, and each free slot adds five to seven
bits that no model can foresee. Classes whose words must be remembered (names, `toy`, `tool`, `spot`, `beast`, `food`,
`cloth`, `colour`, `count`) are used for nothing else, so that a story holds few words that could be mixed up.
"""

from llm.corpus.stories.bags import Bag

_GIRLS = """
ada alice amy anna bella bess bonnie cara clara cora daisy dora edith ella elsa emma erin eva fern flora freya gerda
grace greta hanna hazel heidi helen holly ida ines iris ivy jane jill josie joy judy julia karin kate kitty lena lily
lotte lucy mabel maggie maria martha maya mia millie mina molly nell nina nora olive paula pearl penny petra polly rosa
rosie ruby sally sara sofia stella susan tess thea tilda vera wanda wilma zoe
"""
_BOYS = """
adam alan albert alfie anton archie arthur ben bert bill boris bruno carl caspar charlie colin conrad dan david dennis
edgar edwin eli emil eric felix finn frank fred fritz george gus hans harold harry henry hugo ian isaac ivan jack jacob
jasper jim joe john jonas karl kevin kurt lars leo leon louis luke magnus marco martin max miles moritz ned nick noah
olaf oliver oscar otto owen pablo paul percy peter philip ralph robin sam simon stefan ted theo tim tom toby victor
walter will
"""

_LISTS = {
    # A person's nature: goes before girl, boy, friend, and after "was".
    "trait": """
kind brave shy clever cheerful gentle stubborn curious patient honest quiet dreamy careful bold polite wise friendly
funny proud lazy loyal merry modest nimble noisy playful sensible serious silly sleepy sly smart solemn spirited stern
strong sturdy tender thoughtful tidy timid truthful warm-hearted wild willing witty busy calm careless chatty clumsy
daring earnest fearless forgetful generous grumpy hearty helpful hungry impatient jolly bashful likeable lonely messy
mischievous moody nosy obedient plucky reckless restless rough sweet tall tireless trusting untidy young freckled
curly-haired long-legged barefoot red-cheeked small thin round rosy quick sharp keen fair wary deaf blind bald stout
lean slim plump pale dark hardy fussy fearful jumpy mild meek moral neat odd old poor rich rude sad shrewd slow sober
spry spoilt subtle sullen swift thrifty tough vain wistful worldly able absent-minded active awkward bad-tempered
bossy bookish brisk candid carefree cautious charming civil cool cosy courteous crafty dainty dashing decent devoted
diligent doubtful dull eager elegant famous fickle firm foolish forgiving frail frank free gallant giddy gifted
good-natured graceful grateful gruff handsome hard-working hasty heroic hopeful humble idle inventive just
kind-hearted light-hearted lovable mannerly musical naughty noble peaceful perky placid pleasant practical prudent
puzzled rash rosy-cheeked simple skilful sociable sour spiteful studious tactful talkative thorough touchy tricky
tuneful unlucky upright useful watchful weak well-read wiry zealous
""",
    # How somebody feels: after "was" and "felt".
    "mood": """
happy sad tired glad cross hungry proud lonely cold afraid angry worried thirsty surprised ashamed excited sleepy
hopeful puzzled sorry warm brave nervous cheerful miserable content eager anxious grateful jealous bored weary dizzy
gloomy joyful merry peaceful restless shy startled uneasy upset wide-awake bitter calm homesick confident confused
delighted disappointed embarrassed furious grumpy helpless light-hearted overjoyed pleased relieved stubborn thankful
thrilled troubled unhappy weak strong foolish clever small important fine free flat grim hot ill keen lost low mad
mild numb odd pale safe sick sore stiff tense warm-hearted wild wise alert alive alone amazed amused astonished awful
awkward baffled blessed blue bold bruised busy careless certain charmed comfortable cosy curious dazed desperate
discouraged doubtful downcast dreadful dreamy drowsy dull ecstatic empty enchanted envious faint fearful fearless
forlorn fresh frightened full gentle giddy gleeful guilty heavy-hearted horrified humble hurt impatient inspired
irritable jolly jumpy lazy lucky mellow mischievous moved muddled needy noble patient pensive playful quiet refreshed
rejected rested rich satisfied scared secure serious shaken shocked silly sleepless soothed sorrowful spellbound
spirited strange stunned sulky sure sympathetic tearful tender terrified thoughtful timid tranquil triumphant
uncertain vexed watchful wistful wonderful worn-out
""",
    # How something is done.
    "adv": """
slowly quickly quietly softly gladly carefully gently happily eagerly calmly bravely loudly suddenly firmly kindly
proudly politely patiently shyly sadly boldly brightly busily cheerfully cleverly clumsily coolly crossly curiously
daintily darkly dreamily earnestly easily fearfully fiercely fondly foolishly gleefully gloomily gracefully greedily
grimly grumpily hastily heartily heavily helpfully honestly hopefully hungrily impatiently innocently jealously
jokingly joyfully keenly lazily lightly lovingly madly merrily mildly miserably modestly nervously nicely nimbly
noisily obediently oddly playfully promptly properly rapidly readily recklessly rudely secretly selfishly seriously
sharply silently sleepily smoothly solemnly speedily steadily sternly stiffly strictly stubbornly sweetly swiftly
tenderly thankfully thoughtfully tidily timidly tirelessly truthfully uneasily urgently warmly weakly wearily wildly
wisely anxiously awkwardly briskly carelessly cautiously doubtfully faithfully generously gratefully naturally neatly
nobly openly plainly simply sorely soundly tearfully tensely wickedly willingly meekly beautifully bitterly blindly
blissfully bluntly breathlessly brilliantly candidly casually charmingly cheekily clearly coldly comfortably
competently confidently coyly cruelly decently deeply delicately deliberately delightedly dimly dizzily drily drowsily
dutifully elegantly enviously evenly exactly excitedly expertly faintly fairly famously finely frankly frantically
freely fully furiously gallantly gaily giddily grandly gravely guiltily gruffly haltingly handily helplessly
heroically hoarsely humbly hurriedly idly instantly intently inwardly jauntily jovially justly knowingly lamely
languidly limply loosely loyally magically meaningfully mechanically mournfully mysteriously numbly painfully
passionately peacefully perfectly pitifully pleasantly pleadingly pompously positively primly prudently quaintly
queerly rashly regretfully reluctantly respectfully restlessly rightly roughly ruefully sheepishly sleekly slyly
snugly soberly sourly stealthily stoutly strangely strongly sulkily surely tactfully tamely thoroughly tightly
tragically triumphantly trustingly unwillingly vaguely vainly valiantly vigorously violently vividly wistfully wittily
zealously
""",
    # Went, in many ways; all take "to", "past", "through" and "home".
    "moved": """
walked ran went hurried wandered rushed marched strolled skipped crept climbed raced tiptoed trotted stumbled hopped
plodded sneaked dashed rambled scurried slipped staggered strode tramped trudged danced galloped hobbled limped
scampered shuffled sped swept waddled bounced dawdled drifted glided jogged pranced sauntered scrambled stepped
stomped travelled fled flew rode drove dived waltzed toddled toiled tumbled turned twirled wobbled zigzagged hastened
headed inched laboured leapt lumbered lurched meandered moved pelted plunged pottered proceeded scooted sloped slid
slithered sprang sprinted squeezed stole streaked struggled swam swung tottered tore traipsed trekked whirled whizzed
wound wriggled scuttled skated stalked straggled swaggered trundled
""",
    # Said, in many ways; all take a sentence in quotation marks and a name behind them.
    "said": """
said whispered cried shouted laughed murmured answered called sighed begged muttered giggled grumbled mumbled whined
yelled gasped shrieked stammered chuckled croaked exclaimed groaned growled hummed moaned panted piped pleaded sang
snapped sniffed sobbed squealed added agreed argued barked beamed boasted breathed bubbled cheered chirped chimed
chanted choked cooed crowed declared drawled explained fretted fumed gabbled grinned grunted guessed hinted hissed
howled huffed insisted joked lisped mused nodded observed ordered prayed promised purred quavered raged rasped
remarked repeated replied roared scoffed scolded smiled sneered snorted spluttered squeaked squawked stated stuttered
teased thought thundered trilled vowed wailed warned wheezed wondered yawned yelped
""",
    # Does something small while talking or waiting; after "and" or a name.
    "gesture": """
smiled nodded laughed blushed frowned sighed shivered grinned blinked giggled sneezed yawned winked coughed hiccupped
trembled jumped stretched bowed beamed shrugged listened waited wept sniffed whistled hummed clapped waved stared
paused knelt crouched gulped curtsied chuckled pouted squinted swallowed twirled ached bent blew breathed burped
cheered choked cringed crowed danced dozed drank drooled fainted fell fidgeted flinched fluttered froze fumed gaped
gazed glowed grimaced groaned growled grumbled hesitated hopped howled hid huffed kicked leapt lingered mumbled moaned
panted peered pointed pondered prayed puffed quivered reddened rested rose roared rocked sang sat scowled shook
shouted shuddered skipped slept slumped smirked sniggered snored snorted sobbed spat spun squealed squirmed stammered
stirred stood stooped straightened stumbled swayed sweated thought tiptoed tottered turned twitched waddled wailed
whimpered whispered whooped wobbled wondered wriggled
""",
    # What a place is like.
    "scenic": """
old quiet green wide dark little narrow windy lonely dusty muddy shady sunny sleepy steep foggy grassy rocky sandy
snowy leafy mossy misty crooked busy hidden empty distant peaceful haunted forgotten famous frozen golden hilly gloomy
silent stony swampy thorny tidy wild wooded ancient bare bleak bright broad bustling chilly cosy crowded damp deserted
dim drowsy dreary echoing enchanted flat flowery fragrant friendly gentle grand grey harsh humble icy lofty lovely
lush magical marshy modest neglected noisy northern open overgrown pale pleasant plain pretty ragged remote rugged
rainy salty secret shadowy shabby sheltered slippery smoky southern strange sunlit tiny tranquil unknown vast warm
weedy western winding airy arid autumnal barren beautiful blessed blue boggy bold brambly breezy brown calm charming
cheerful chalky civil clean clear cloudy cold colourful cool coastal craggy cramped cursed curious dead deep dismal
dreamy dry dull dusky empty-looking exposed fair faded fertile fine flooded foul free fresh frosty fruitful gaunt
ghostly glorious gnarled good gracious graceful green-roofed half-hidden hazy healthy heavy high holy homely honest
hot humming hushed inland jolly joyful jagged kindly lazy leafless light lonesome long lost low luckless lucky
majestic marvellous mellow mild mighty moonlit mountainous muddled murky mysterious nameless nearby noble odd orderly
pebbly picturesque pink plentiful poor private prosperous proud puzzling quaint rambling reedy rich rickety royal
rural rustic sacred sad sheer shining shivering silver simple sinking sloping small smooth snug soft solitary sombre
soggy sparkling spacious splendid spooky square stately sticky still strong sturdy sultry sunburnt sunken surprising
sweet tall tangled tame thick thirsty thriving tilted timeless towering tropical twisted twilit ugly uneven unlucky
unspoilt upland useless verdant wealthy weary weather-beaten wet whispering white wicked windswept wondrous wretched
yellow young zigzag
""",
    # Where people live.
    "land": """
village valley town harbour island hill coast forest city farm mountain moor castle country river bay lake marsh
meadow plain port shore street desert canyon cliff heath highland inn jungle lagoon market mill monastery oasis parish
pass ridge settlement township vineyard wood cove delta dale fen fjord glen hamlet abbey archipelago backwater basin
beach burgh cape colony commune dell district dune estuary estate fort garden glade grove headland hermitage hut inlet
isle kingdom lane moorland outpost park peninsula plateau prairie ranch reef resort seaport shire square
steading suburb swamp thicket tundra vale wharf wilderness
""",
    # Places where things happen; after "the".
    "spot": """
bridge barn well orchard pond gate stable bakery cave chapel church cottage fountain garden graveyard greenhouse
henhouse cabin hut kitchen library lighthouse market meadow mill museum nursery oven palace park pier playground porch
quarry railway river school shed shop sawmill spring square station stream temple tower treehouse tunnel vineyard
waterfall wharf windmill workshop attic cellar courtyard crossroads dairy ferry forge haystack hedge hillside hollow
inn jetty kennel lawn ruin signpost stairway theatre wall woodshed
""",
    # Things a child would love to have.
    "toy": """
kite drum ball doll flute puppet whistle top marble bell book bow balloon boat bicycle sledge trumpet violin guitar
harp horn rattle mask crown necklace bracelet ring locket brooch mirror music_box puzzle robot rocking_horse scooter
ship spyglass telescope compass teddy yo-yo hoop swing tambourine fiddle harmonica accordion banjo piano globe magnet
medal paintbox pencil feather shell pebble pearl crystal coin lantern train truck wagon cart clock pocket_watch
dollhouse hobby_horse jigsaw kaleidoscope periscope pinwheel skipping_rope snow_globe saddle unicycle xylophone
paper_dragon
""",
    # Things to work with.
    "tool": """
rope ladder spade hammer net bucket axe saw shovel rake broom pole stick lamp torch candle knife key chain hook basket
barrel blanket bottle box crate cushion fish_trap fishing_rod handcart hoe jug lever mattress nail needle oar paddle
pan pitchfork plank pot pulley pump raft sack file scythe sickle spoon stool tent wheelbarrow wire wrench umbrella
""",
    # Beasts, wild and tame.
    "beast": """
fox goose cat dog goat hare owl pony duck frog bear badger beaver donkey calf camel crow deer dove eagle elephant
falcon ferret flamingo hamster hawk hedgehog hen heron kitten lamb lizard magpie mole monkey mouse mule newt otter ox
parrot peacock pelican penguin pig pigeon piglet puffin puppy quail rabbit raccoon raven robin rooster salamander
seagull seal sheep snail sparrow squirrel stork swallow swan tiger toad tortoise turkey turtle weasel wolf woodpecker
zebra llama hippo gosling foal
""",
    # Food, told of as "some ...".
    "food": """
bread cheese soup honey cake butter jam milk porridge pudding salad toast rice ham fish corn apples pears plums
cherries berries grapes nuts carrots peas beans potatoes turnips onions mushrooms pancakes waffles biscuits buns rolls
dumplings noodles sausages tarts pies muffins pretzels raisins figs dates lemons peaches apricots oranges melons
chestnuts almonds walnuts radishes tomatoes pickles olives eggs omelette gingerbread chocolate toffee custard yoghurt
cocoa lemonade broth stew pasta oatmeal popcorn pumpkin spinach cabbage beetroot celery
""",
    # Things to wear.
    "cloth": """
coat scarf hat cap cloak dress shirt apron jacket jumper vest belt bonnet cape gown hood kilt nightgown petticoat
poncho raincoat ribbon robe sash shawl skirt slipper smock sock sweater tunic turban veil waistcoat handkerchief
collar pinafore
""",
    "colour": """
red blue green yellow white black brown purple pink orange grey golden silver violet crimson scarlet turquoise emerald
ivory lilac maroon copper cream amber indigo lavender lemon navy olive rosy silvery
""",
    "count": "three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen twenty",
    # What things are like.
    "look": """
small shiny old wooden big heavy round pretty smooth tiny painted strange broken golden little simple splendid
beautiful bent carved cheap clean cracked crooked curious dainty delicate dented dusty elegant enormous faded fancy
fine foreign fragile funny glittering gorgeous handsome huge light long lopsided lovely lucky magnificent marvellous
mended modern muddy narrow neat odd old-fashioned ordinary patched perfect plain polished precious rare ribboned rough
rusty scratched sparkling speckled spotted square squeaky striped strong sturdy tattered thick thin unusual useful
valuable well-made wonderful woollen worn wrinkled antique bare battered best black bleached blunt boxy brand-new
brass bright brittle bronze bulging bulky bumpy chipped clever clumsy coarse common cool copper cosy costly crumpled
cut damp deep dark dear decorated dim dirty dry dull durable empty enchanted engraved excellent exotic faint false
familiar famous favourite fat feathery festive firm flat flimsy floral flowery foldable forgotten freckled fresh
frilly furry fuzzy gilded glassy glossy glowing good graceful grand greasy grubby hairy half-finished hard haunted
hidden hollow homely humble icy inky iron jagged jewelled jolly knotted lacy large laughable lazy leaky leather limp
linen loose loud lost lumpy magic marbled massive matted merry metal mild mouldy musty mysterious nameless natural
nice noble noisy oily open oval padded pale papery peculiar peppery plaited plump pointed poor popular proper proud
queer quaint quiet ragged raw real rich ridiculous robust rotten royal ruined russet sad safe sandy satin scarred
scented scruffy secret shabby shaky shapeless sharp short silent silken silly singed sleek slender slim slimy slippery
snug soft soggy solid sooty sour spare special spiky splintered spotless stained stainless steel sticky stiff stolen
stray stubby superb supple surprising sweet tall tame tarnished tasselled tasteful tarry tight torn tough tricky
twisted ugly uneven unfinished velvet vast warm washed waxy weathered weird wet wicked wide wiry wobbly wondrous
wretched zigzag
""",
    # What beasts are like.
    "furry": """
hungry little old young fat wet clever frightened lame tame wild wounded shivering spotted striped fluffy gentle lost
lazy greedy nervous noisy limping shaggy sleepy sly swift tiny tired thin trembling woolly white black brown grey
speckled scruffy skinny snow-white soft one-eyed mud-covered muddled motherless bewildered brave trusting thirsty
active aged alert angry anxious awkward bashful black-eyed bold bony bright-eyed brown-eyed calm careful cheeky clumsy
cold crafty cross crooked cuddly curious dainty dark deaf dirty drowsy dusty eager fearful fearless feeble ferocious
fierce fine foolish frail friendly funny fussy gaunt giddy gigantic golden graceful grateful grubby grumpy handsome
hardy harmless heavy helpless homeless huge humble hurt idle impish injured jolly jumpy keen kind lanky large lean
lonely long-eared lovely loyal lucky matted meek merry mighty mild mischievous moody muddy naughty nimble noble odd
orphaned pale patient peaceful perky plain playful plucky plump polite poor pretty proud quick quiet ragged rare
restless rough round rude sad savage scared scrawny scratched sensitive serious sharp-eyed short shrewd shy silent
silky silly silvery skilful sleek slender slim slow small smart smooth snoring solemn sooty soft-eyed spirited
spiteful splendid starved stiff stocky stout strange stray strong stubborn sturdy sulky sullen surly tall tattered
tearful tender timid toothless tough troubled ugly unhappy unlucky vain velvety wary watchful weak weary white-footed
wiry wise worried wrinkled yellow zany
""",
    # Weather and times.
    "sky": """
cold warm rainy windy sunny foggy misty stormy snowy cloudy bright grey frosty mild hot dull chilly cool damp dark
dreary dry dusty fair fine fresh gloomy golden hazy icy lovely moonlit muggy pleasant quiet rough sticky still sultry
wet wild airy autumnal balmy bitter black bleak blowy blue blustery breezy calm clammy clear close cloudless crisp dim
dismal drizzly fickle fierce freezing glorious grim gusty hard harsh heavy humid hushed leaden light long lonely
mellow murky nasty overcast pale peaceful pink raw red restless rosy scorching serene sharp short shady showery sleepy
sleety slushy soft soggy sombre squally starry steamy strange sunless sunlit sweltering thundery tranquil wintry
wonderful yellow
""",
    "day": "Monday Tuesday Wednesday Thursday Friday Saturday Sunday",
    "hour": "morning evening afternoon night noon dawn dusk sunrise sunset midday midnight daybreak",
    "month": "January February March April May June July August September October November December",
    "storm": """
rain snow wind storm fog hail thunder mist frost ice drizzle blizzard darkness mud lightning sleet gale dust smoke
twilight flood showers squalls clouds heat cold sand spray hailstones waves slush leaves sparks shadows dew puddles
brambles nettles fire ash
""",
    # Growing things; all with a plural in -s, told of one by one or in bunches.
    "tree": """
oak pine willow apple_tree birch beech elm maple chestnut_tree fir cedar ash alder lime_tree poplar pear_tree
plum_tree cherry_tree fig_tree hawthorn hazel_bush holly_bush juniper larch lilac_bush palm rose_bush rowan spruce
walnut_tree yew sycamore cypress elder_bush acacia aspen bay_tree blackthorn box_tree buckthorn dogwood hemlock
hornbeam laurel linden magnolia medlar mulberry myrtle olive_tree redwood privet quince tamarisk teak almond_tree
peach_tree
""",
    "flower": """
daisy rose tulip violet lily poppy buttercup bluebell daffodil snowdrop primrose marigold sunflower pansy carnation
cornflower cowslip crocus dahlia dandelion foxglove geranium hyacinth iris jasmine lavender lupin orchid peony petunia
thistle waterlily anemone begonia clover aster bellflower camellia celandine cosmos fuchsia gardenia harebell
hollyhock hydrangea larkspur magnolia nasturtium nettle oleander oxlip speedwell sweet_pea snapdragon zinnia
forget-me-not mallow teasel yarrow honeysuckle periwinkle ragwort fern
""",
    # Small wonders heard and smelt: behind "the sound of" and "smelled of".
    "sound": """
bells birds music laughter rain waves crickets drums footsteps flutes frogs geese hooves horns owls sheep singing
snoring thunder trumpets voices water whistles wings wheels bees hammers leaves church_bells fiddles cows doors
barking birdsong clapping clocks coughing crows crying cuckoos doves ducks echoes engines gulls hail harps hissing
howling hums jackdaws larks lullabies mice mills moans organs pans peacocks pipes pigs ravens roaring robins rustling
saws sighs sirens sneezing songs squeaking steps streams thrushes trains trumpeting wasps whispering wolves
woodpeckers
""",
    "smell": """
hay smoke roses bread honey soap leather cinnamon grass rain mint pine salt seaweed straw tar thyme vanilla vinegar
wax wool rope coffee earth fish garlic ginger herbs ink lavender lemons moss nutmeg onions paint pepper sawdust
almonds apples bacon baking beer berries burnt_toast butter cedar chalk cheese chestnuts cider cloves clover cocoa
cut_grass dust eggs fennel fir fog fur gravy heather iron ivy jam lilac lime malt mice mud mustard oil
old_books oranges parsley peaches peat plums pumpkin resin rosemary sage snow spice stables sugar sweat tea toffee
turf violets walnuts wood yeast
""",
    # Small things out of pockets, sacks and drawers.
    "trifle": """
button candle_end thimble cork acorn ball_of_string stamp map nutshell pin spool brush comb fish_hook leaf match
notebook paper_clip penny pine_cone postcard scrap_of_silk rubber_band seed seashell snail_shell ring_of_wire sweet
ticket toffee_tin tooth walnut_shell zipper bone bottle_top piece_of_chalk clothes_peg cotton_reel crumb doorknob
fir_cone glass_bead horseshoe letter mousetrap paper_hat pencil_stub bit_of_wax safety_pin bag band bean bib blade
block bobbin bolt boot bowl braid brick bud buckle bulb can card charm chess_piece chip clasp clip cloth cone cord
crayon cube cup curl disc dot eggcup envelope eraser fan flag flint fork funnel gem glove grater hairpin handle helmet
hinge hook hourglass icicle kettle keyring knot label ladle latch lens lid link lock magnifying_glass medallion mug
napkin nut oyster_shell page patch peg pen petal picture pipe pistachio plate plug pocket poem quill rag receipt reed
rivet rod root ruler saucer screw scroll shoe shoelace shuttle sieve sign skewer slate snuffbox sponge spring stone
straw strap stub sugar_lump tack tag tassel teabag teacup thorn tile token trinket tube twig twist_of_paper vase vial
wafer wheel wick wooden_spoon wreath
""",
    # What people do for a living; after "the", with "'s".
    "trade": """
baker miller smith farmer tailor fisherman doctor teacher shepherd gardener carpenter cook weaver potter painter
sailor postman butcher cobbler clockmaker blacksmith captain ferryman forester hunter innkeeper jeweller judge juggler
librarian mason mayor merchant musician nurse peddler pilot poet printer roofer saddler shoemaker soldier stonecutter
tinker watchman wizard woodcutter beekeeper bookbinder candlemaker chimney_sweep cowherd glassblower goldsmith
hatmaker archer astronomer barber basketmaker boatman brewer bricklayer builder butler carter chemist clerk clown
coachman cowboy dancer dentist diver driver dyer engineer explorer falconer fiddler florist gatekeeper glazier grocer
groom guard harper hermit herald inventor ironmonger knight lawyer lighthouse_keeper locksmith magician mapmaker
organist oarsman pastry_cook pedlar physician piper ploughman porter puppeteer ranger rat-catcher ropemaker sailmaker
scholar scribe sculptor servant sheriff steward storyteller sweep tanner toymaker trader trapper tutor verger vet
waiter wheelwright wigmaker zookeeper
""",
    "kin": """
grandmother grandfather mother father aunt uncle cousin sister brother godmother godfather neighbour stepmother
stepfather nephew niece teacher granddaughter guardian great-aunt great-uncle nurse tutor landlady
""",
    # Games and songs, for the hours when all is well.
    "game": """
hide-and-seek tag marbles hopscotch leapfrog chess dominoes cards football ninepins dice charades skittles draughts
catch riddles knights pirates school spillikins forfeits horseshoes bowls checkers explorers acrobatics archery
arm-wrestling backgammon badminton billiards boxing bridge conkers cricket croquet curling darts fencing golf hockey
hoopla jacks juggling jumping lotto mime musical_chairs patience polo quoits rounders rowing running sack_races
skating sledging snap solitaire spinning_tops swimming swordplay tennis tiddlywinks tug-of-war wrestling yachting
whist
""",
    "topic": """
dragons giants stars pirates ghosts kings ships witches dwarfs elves fairies treasure whales knights wolves comets
mermaids castles trains planets volcanoes robbers princesses monsters islands grandmothers holidays summer winter bees
clouds rivers mountains birthdays dinosaurs oceans rainbows shadows magic acrobats adventures angels ants apples bats
bears beetles bridges butterflies camels caravans caves cats circuses cities clowns cooking crocodiles desserts dogs
dolphins donkeys dreams drums eagles earthquakes emperors engines feasts flying foxes frogs gardens gnomes goblins
gold harbours hats heroes horses icebergs inventions jokes jungles kites lighthouses lions machines maps masks mazes
mice mirrors moles monkeys mountaineers mysteries music numbers ogres owls parrots penguins philosophers pumpkins
puzzles queens rain riddles rockets sailors school secrets sharks sheep shells snails snakes snow soup spiders spies
storms sunsets swords tigers time towers trees trolls turtles unicorns weddings wheels wizards
""",
    # What the moral is about.
    "virtue": """
kindness patience courage honesty friendship hope trust truth love wisdom laughter sharing modesty gratitude mercy
loyalty generosity forgiveness diligence humour politeness faith pity tenderness cheerfulness helpfulness bravery calm
candour care caution charity cheer comfort compassion curiosity decency devotion duty effort fairness fidelity freedom
gentleness goodness grace harmony humility imagination innocence joy justice learning mirth moderation music peace
play pluck prudence rest respect silence sense skill song tact thrift tolerance toil understanding valour wit wonder
work
""",
    "riches": """
gold silver diamonds money rubies pearls jewels crowns castles treasure emeralds palaces medals fame power victory
silk velvet furs servants coins carriages thrones sapphires amber applause beauty bells brooches cake carpets chests
copper coaches cleverness cunning estates feasts fine_clothes flattery furniture glory golden_rings horses ivory
influence land looks luck mansions marble necklaces porcelain platinum praise prizes pomp purses rank revenge sables
satin ships speed spices splendour strength success swords titles trophies vineyards wealth youth
""",
    "vehicle": """
cart boat train coach sledge wagon ship ferry bicycle tractor lorry canoe carriage raft barge balloon steamboat tram
""",
    # Everyday work, done with "was busy ...ing".
    "chore": """
sweeping cooking sewing digging reading fishing knitting baking painting singing gardening cleaning weaving drawing
writing mending milking raking washing whittling counting carving dusting ironing polishing practising sawing
scrubbing spinning stitching whistling drying ploughing darning packing sorting stacking sharpening studying baling
boiling brewing bottling building burning carting chopping churning climbing collecting combing composing cutting
dancing dreaming drilling driving dyeing feeding felting filing folding frying gathering gluing grinding grooming
hammering harvesting herding hoeing hunting juggling kneading lacing ladling laughing mowing measuring mixing moulding
nailing napping netting oiling peeling pickling planting plucking pruning quilting reciting resting riding roasting
rowing running salting scraping shearing shovelling shopping skating sketching skipping sleeping sowing stirring
stuffing sunbathing swimming tanning thatching threshing tidying tuning varnishing watering weeding welding winding
wrestling yodelling
""",
    # Things in a room or a garden that are seen, sat on or looked behind.
    "nook": """
table bed chair bench stove cupboard window door shelf basin bookcase carpet chest cradle curtain desk drawer
fireplace ladder mat pillow rug sofa staircase trunk wardrobe washtub bathtub armchair hearth mantelpiece anvil arch
bath beam bin bookshelf bread_bin bunk cage coat_rack counter cot couch crib cushion dresser easel footstool
gramophone grandfather_clock hamper hammock hatstand haycart icebox kettle lamp larder loom manger oven pantry pew
pillowcase pram quilt rack rocking_chair screen seat settle sideboard sill sink spinning_wheel stool stepladder
tablecloth tub umbrella_stand vat washstand water_butt woodpile workbench
""",
    "container": "basket bag box sack jar bowl bucket crate pot jug bundle tin barrel tray parcel case",
    "tasty": """
warm fresh sweet hot salty sour spicy cold soft crisp crunchy creamy delicious juicy tasty ripe golden sticky steaming
buttery tangy tender home-made plain good simple rich fine stale dry burnt smoky bitter bland buttered candied chilled
chopped crumbly crusty dried fragrant frosted fruity garlicky gingery glazed greasy half-eaten hearty heavenly homely
honeyed iced leftover lemony light lovely lukewarm lumpy luscious mashed mellow mild minty mouth-watering mushy
nourishing nutty odd oily overripe peeled peppery pickled powdery raw roasted rosy salted savoury scented shop-bought
sliced smoked soggy spiced splendid squashed strange stuffed sugared sugary sun-dried syrupy tart tempting toasted
unripe velvety wholesome wild wonderful yellow zesty
""",
    "surname": """
Hill Wood Reed Field Brook Stone Ford Marsh Green Brown White Black Grey Bell Hart Fox Lamb Crane Swift Wren Bird
Finch Drake Pike Hare Bear Wolfe Lake Rivers Banks Bridge Church Hall House Mill Lane Street Park Gates Wells Pond
Moor Heath Dale Glen Cliff Frost Snow Winter Summer May Noon Day Night Star Moon Sun Rain Storm Gale Flood Best Good
Bright Sharp Small Little Long Short Strong Young Old Rich Poor Wise Noble King Knight Page Squire Abbot Bishop Baker
Miller Smith Cooper Carter Potter Turner Tanner Taylor Weaver Mason Shepherd Gardener Cook Hunter Fisher Archer Piper
Harper Rose Lilley Thorn Bush Oakes Ash Birch Elmer Nutt Berry Peach Plum Appleby Cherry Pepper Salt Sugar Honey Bacon
Bunn Pye
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
