"""The texts that every build is checked on. Written for this project; the order is part of it.

Short ones come first: the first four rows are checked whenever a build meets a new engine.
"""

from typing import Final

QUERIES: Final = (
    "why do leaves turn red",
    "how can a ship made of steel float",
    "what keeps 2 programs from writing to the same file at once?",
    "my soup got too salty, 20 minutes before guests arrive; what now",
    "pourquoi le ciel est-il bleu",
    "почему лёд легче воды",
    "SELECT name FROM users WHERE id = 42 -- is this safe if 42 comes from a form?",
    "warum rostet Eisen schneller am Meer",
)

DOCUMENTS: Final = (
    "Chlorophyll breaks down in autumn, and the red of anthocyanins shows.",
    "A body in water is pushed up by the weight of the water it displaces.",
    "",
    "A lock lets one process at a time write; the others wait until it is released.",
    "    indented code\n\tif x == 1000000:\n\t\treturn  'two  spaces'\n",
    "Dilute it: add water or unsalted stock, or potatoes, which take up broth.",
    "水は氷になると体積が増える。だから氷は水に浮く。",
    "الملح يخفض درجة تجمد الماء",
    "Salt water conducts better than fresh water, so the currents of corrosion flow more easily. "
    "Near the coast droplets of it settle on every surface, and iron rusts several times faster "
    "than inland, where rain washes surfaces clean and the air holds little salt.",
    "Prices rose by 3.14159 % in 2023, from 1,024 to 1,056.17 (see table 7, rows 12-15). 🙂👩‍🔬",
    "A parameter that is bound to the user's input is never read as a part of the statement, so "
    "text that looks like SQL stays text. <emb_token> and <|im_end|> in a text are text, too.",
    "Light of short waves is scattered far more strongly by molecules of air than light of long "
    "waves: by the fourth power of the frequency. Blue therefore reaches the eye from every "
    "direction, while red comes almost straight from the sun. At dusk the path through the air is "
    "so long that hardly any blue is left, and what remains is orange.",
)
