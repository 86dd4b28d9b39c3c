"""What the lab model can draw: a caption name for each picture, and the words kept for scoring.

Captions use these names only, so that the synonyms of the ten classes are unseen by the model itself.
"""

# The paper's protocol: the ten classes of CIFAR-10 with three synonyms each, as MACE lists them.
CLASSES = {
    "airplane": ("aircraft", "plane", "jet"),
    "automobile": ("car", "vehicle", "motorcar"),
    "bird": ("avian", "fowl", "winged creature"),
    "cat": ("feline", "kitty", "housecat"),
    "deer": ("hart", "stag", "doe"),
    "dog": ("canine", "pooch", "hound"),
    "frog": ("amphibian", "anuran", "tadpole"),
    "horse": ("equine", "steed", "mount"),
    "ship": ("vessel", "boat", "watercraft"),
    "truck": ("lorry", "rig", "hauler"),
}

# Icons whose caption is their own name.
_SAME = """
airplane automobile bird cat deer dog frog horse ship
alien ambulance american-football amphora anchor ant avocado backpack bacon balloon banana basketball bat
bathtub battery bear bed bell bento-box bicycle bikini bomb books bouquet bread briefcase bus butterfly cactus
camel camera candle candy canoe carrot castle chains cherries chestnut chicken chipmunk chocolate-bar christmas-tree
church cigarette cloud clipboard coffin comet cookie cow crab crayon crocodile croissant crown crystal-ball
cucumber custard dagger desert-island dolphin door doughnut dragon dress droplet drum duck eagle ear ear-of-corn
egg eggplant electric-plug elephant envelope eye factory ferris-wheel fire fireworks fish flashlight
floppy-disk footprints fountain fountain-pen fox french-fries gear ghost glasses goat gorilla graduation-cap grapes
green-salad guitar hamburger hammer hamster headphone helicopter herb hibiscus high-heeled-shoe honey-pot honeybee
hospital hot-dog hot-pepper house ice-cream ice-skate jack-o-lantern jeans joystick key keyboard
koala lady-beetle laptop lemon leopard light-bulb lion lipstick lizard locomotive lollipop loudspeaker
maple-leaf megaphone melon microphone microscope mobile-phone monkey motorcycle mountain mouse mushroom
musical-keyboard necktie newspaper octopus office-building owl ox package paintbrush palm-tree pancakes panda
paperclip peach pear pencil penguin pig pineapple pizza popcorn potato printer purse pushpin rabbit
racing-car radio rainbow ram rat rhinoceros ring robot rocket rooster rose running-shoe sailboat satellite saxophone
scissors scorpion scroll seedling shark sheaf-of-rice shield shopping-cart shower shrimp skull snail snake snowflake
snowman soccer-ball spaghetti speedboat spider spoon squid star strawberry sun sunflower sunglasses sushi syringe
taxi telephone telescope television tennis tent tiger toilet tomato top-hat tornado tractor train
trophy tropical-fish trumpet tulip turkey turtle umbrella unicorn violin volcano watch
watermelon whale wine-glass wolf wrapped-gift wrench
"""
# Caption name: icon name.
_RENAMED = {
    "truck": "delivery-truck",
    "tree": "deciduous-tree",
    "pine tree": "evergreen-tree",
    "apple": "red-apple",
    "heart": "red-heart",
    "cup of tea": "hot-beverage",
    "beer": "beer-mug",
    "birthday cake": "birthday-cake",
    "fire engine": "fire-engine",
    "police car": "police-car",
    "scooter": "motor-scooter",
    "moon": "full-moon",
    "lightning": "high-voltage",
    "cheese": "cheese-wedge",
    "sofa": "couch-and-lamp",
    "computer": "desktop-computer",
    "kiwi": "kiwi-fruit",
    "dice": "game-die",
    "money": "money-bag",
    "shirt": "t-shirt",
    "knife": "kitchen-knife",
}

# Caption name -> icon name, in a fixed order: the ten classes first.
ICONS = {**{name.replace("-", " "): name for name in _SAME.split()}, **_RENAMED}
ICONS = {name: ICONS[name] for name in (*CLASSES, *sorted(set(ICONS) - set(CLASSES)))}
NAMES = tuple(ICONS)
