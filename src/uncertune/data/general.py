"""Prompts and prose that have nothing to do with any training task here: what a fine-tuned model should not unlearn.

Written for this project and free to use under its licence. Small on purpose: an offline stand-in for out-of-
distribution sets, not a benchmark.
"""

GENERAL_PROMPTS: tuple[str, ...] = (
    "Explain in two sentences why the sky looks blue during the day.",
    "Write a short poem about a lighthouse in winter.",
    "Translate into French: Where is the nearest train station?",
    "Name three capital cities in South America.",
    "Write a Python function that reverses a string.",
    "How can I sleep better at night?",
    "Rewrite this sentence in a formal style: Can you get back to me soon?",
    "What is the difference between a lake and a river?",
    "Suggest a title for a story about two sisters who open a bakery.",
    "Summarize in one sentence: The meeting was moved to Friday because the manager is ill and the room is taken.",
    "Describe how to make a cup of tea.",
    "Write a polite email that declines a dinner invitation.",
    "What does the word 'reluctant' mean? Use it in a sentence.",
    "Give me an idea for a rainy afternoon with two small children.",
    "Correct the grammar: She don't like to goes outside when it rain.",
    "Explain what a computer virus is to a ten-year-old.",
    "Write the opening line of a detective novel set in a museum.",
    "Which household items can be recycled?",
    "What should I pack for a weekend of hiking?",
    "Is this review positive or negative? The food was cold and the waiter forgot our order.",
    "Write an SQL query that lists all customers from Norway.",
    "Give two arguments for and two against living in a big city.",
    "Turn this into a question: The library opens on Sundays.",
    "Tell me something surprising about octopuses.",
)
"""24 short requests of varied kinds, none of them arithmetic."""

GENERAL_TEXT: tuple[str, ...] = (
    # nature
    "A river begins small, often as a spring or a trickle of melting snow, and gathers water from every slope it "
    "passes. In the mountains it runs fast and carries stones along its bed. Lower down the land flattens, the "
    "water slows, and the river drops the sand and mud it can no longer hold. Over many years these deposits "
    "build wide plains, and near the sea they may form a delta where the current divides into many channels.",
    # history
    "Before printing spread through Europe in the fifteenth century, most books there were copied by hand, and a "
    "long one could keep a scribe at his desk for months. Johannes Gutenberg's workshop in Mainz used movable "
    "metal type, which could be set, inked, pressed and then taken apart for the next page. Books became cheaper "
    "and more alike. Within a few decades presses were working in dozens of towns, and ideas travelled faster "
    "than before.",
    # cooking
    "Start the soup by cooking a chopped onion slowly in a little oil until it is soft and sweet, which takes "
    "longer than most recipes admit. Add sliced carrots, a stalk of celery and a bay leaf, then cover everything "
    "with stock. Let the pot simmer gently with the lid ajar. When the vegetables give way to a spoon, stir in "
    "cooked beans and a handful of parsley. Taste it before you reach for the salt.",
    # technology
    "When you open a web page, your computer first asks a name server for the address that belongs to the site's "
    "name. It then connects to the machine at that address and requests the page. What comes back is split into "
    "small packets, each of which may take a different route across the network. Your computer puts them in order "
    "again, asks for any that were lost, and only then can the browser draw what you see.",
    # dialogue
    '"You kept the map," said Ilse, holding it up to the window. "I thought you had thrown it away years ago." '
    'Her brother shrugged and went on drying the plates. "I meant to," he answered, "but Father wrote the names '
    'on it, and nobody else spells them like that." She laughed, then stopped. In the corner, below the lake, '
    'someone had drawn a small house in red pencil. "Who lived there?" she asked. He did not turn round.',
    # letter
    "Dear Margaret, thank you for the parcel, which arrived on Thursday with only one corner crushed. The scarf "
    "is exactly the green I hoped for, and the children have already claimed the biscuits. We are all well, apart "
    "from the dog, who ate a candle and has been sorry for himself ever since. The garden is late this year. Do "
    "come in June if you can manage it; the spare room is dry again. With love from all of us, Helen.",
    # news
    "The town council voted on Tuesday evening to keep the old swimming baths open for another year while "
    "engineers study the roof. Residents had filled the public gallery, many of them carrying towels as a sign of "
    "support. A spokeswoman said the building needed urgent repairs but was not in danger of collapse. The "
    "swimming club, which has trained there for generations, welcomed the decision. A final report is expected "
    "before the end of autumn.",
    # biology
    "Honeybees tell one another where to find flowers by dancing on the comb. A bee that has found food runs in a "
    "straight line while shaking her body, circles back, and repeats the run many times. The angle of the run "
    "shows the direction of the food relative to the sun, and its length shows roughly how far away it is. In the "
    "dark hive other bees follow her closely, feel the movements, and then fly out to search.",
    # travel
    "The night train leaves the city a little before ten, when the offices are dark and the cafés are putting "
    "chairs on tables. For the first hour there are suburbs, lit windows and empty platforms. Then the hills "
    "begin and there is nothing outside but an occasional farm. The steward brings blankets and asks who would "
    "like coffee in the morning. By the time most passengers wake, the sea is on the left, flat and grey and very "
    "close.",
    # music
    "The sound of a violin begins with friction. Rosin on the bow makes its hair grip the string, pull it aside "
    "and let it slip, again and again, hundreds of times a second. The string alone would be almost silent, "
    "because it is too thin to move much air. The bridge passes its vibration to the wooden body, whose broad "
    "plates and enclosed air make it loud. Small differences in wood and shape give each instrument its own "
    "voice.",
    # advice
    "If you want to learn a language as an adult, let go of the idea of a perfect start. Choose something you "
    "would enjoy in your own language, such as football reports or cooking videos, and spend a short time with it "
    "every day. Speak early, even badly, because people forgive mistakes more readily than silence. Write down "
    "the words you needed and did not have. After a few months you will notice that you have stopped translating "
    "in your head.",
    # astronomy
    "The Moon always shows us nearly the same face because it turns on its axis in the same time that it takes to "
    "circle the Earth. This is no accident. Long ago the Earth's gravity raised tides in the Moon's rock, and the "
    "friction slowly braked its spin until the two motions matched. The far side stayed unknown until a "
    "spacecraft photographed it in 1959, and it turned out to be rugged, with few of the dark plains we see from "
    "home.",
)
"""12 paragraphs of prose, 60 to 90 words each: nature, history, a recipe, technology, fiction, a letter and more"""
