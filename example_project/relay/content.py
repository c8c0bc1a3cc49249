"""The words Relay's example content is made of: names, rooms, sentences, documents.

Data only; ``seed`` puts it together.
"""

from __future__ import annotations

FIRST_NAMES = (
    "Ada Amara Anders Aroha Beatriz Bram Camille Chidi Dana Daniel Elif Elena Emeka Farah Felix Freya "
    "Gita Hana Hugo Ines Ingrid Isaac Jonas Jun Kaya Keiko Lars Leila Linh Lucia Malik Marta Mateo Mina "
    "Nadia Niko Noor Olga Omar Oscar Paula Priya Rafael Ravi Rosa Samir Sanne Sofia Stefan Tariq Tess "
    "Thandi Tomas Uma Vera Viktor Wei Yara Yusuf Zoe"
).split()

LAST_NAMES = (
    "Abara Adler Ahmadi Almeida Andersson Baker Banerjee Berg Castillo Chen Costa Dubois Eriksen Fischer "
    "Fofana Garcia Haddad Hansen Ito Jansen Kaplan Keller Khan Kim Kovacs Larsen Lee Lindqvist Lopez "
    "Marin Mbeki Meyer Mori Moreau Nakamura Ndiaye Nguyen Novak Okafor Okoye Olsen Ortega Park Patel "
    "Pereira Petrov Reyes Rossi Sato Schmidt Silva Singh Tanaka Torres Vargas Visser Weber Wong Yilmaz "
    "Zhang"
).split()

SERVICES = [
    "billing-api", "search-indexer", "mail-relay", "auth-gateway", "export-worker", "thumbnailer",
    "webhooks", "report-builder", "sync-engine", "notifications", "rate-card", "ledger",
]  # fmt: skip
FEATURES = [
    "shared inbox", "bulk export", "audit log", "saved searches", "guest links", "two-step sign-in",
    "offline drafts", "mentions", "usage report", "dark theme", "document history", "calendar sync",
]  # fmt: skip
CUSTOMERS = [
    "Northwind",
    "Fabrikam",
    "Lakeside Clinic",
    "Orchard & Co",
    "Harbour Rail",
    "Museum of Tides",
    "Tallgrass",
]
CITIES = ["Lisbon", "Utrecht", "Nairobi", "Kyoto", "Montreal", "Leeds", "Porto", "Tallinn"]
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday"]

# Slug, name, topic, how busy it is, and what is said there.
ROOMS: list[tuple[str, str, str, int, list[str]]] = [
    ("general", "General", "Everything that concerns everybody", 10, [
        "Morning all. The office in {city} is closed on {day}, the kitchen is being painted.",
        "The {day} all-hands moves to 15:00 so that {city} can join.",
        "Who has the key to the small meeting room? It was not on its hook this morning.",
        "Reminder: expenses for last month are due on {day}.",
        "We are {n} people now. Welcome to everybody who started this week!",
        "Somebody left a very nice umbrella in the hall. Green, wooden handle.",
    ]),
    ("announcements", "Announcements", "Low traffic, worth reading", 3, [
        "{feature} is live for everybody. Thanks to all who tested it.",
        "From {day} on, new accounts get the {feature} by default.",
        "We signed {customer}. First users come in next week.",
        "Maintenance on {day} 06:00 to 06:20 UTC: {service} restarts, nothing else.",
        "The handbook has a new page about travel. Please read it before you book for {city}.",
    ]),
    ("engineering", "Engineering", "How we build it", 11, [
        "I would like to split {service} before we add the {feature}. Draft is in the documents.",
        "Tests on main take {n} minutes now. I have a branch that halves it.",
        "Does anybody object if I drop the old endpoint of {service}? No calls in {n} days.",
        "The flaky test in {service} was a real race. Fixed, and there is a test that shows it.",
        "Upgrade to the new Django is done on staging. No surprises so far.",
        "Please look at the migration for {feature} before {day}: it locks a large table for {n} s.",
        "I measured the page again: {n} queries before, 4 after.",
    ]),
    ("frontend", "Frontend", "Pages, styles, accessibility", 7, [
        "The {feature} dialog traps the focus now, and Escape closes it.",
        "Contrast of the grey labels was 3.9 to 1. I made it 5.2.",
        "We ship {n} kB of script on the home page. Most of it is the date picker.",
        "The table of {feature} scrolls sideways on a phone. Cards would be better below 480 px.",
        "Can we agree on one name for the button: Save, Apply or Done?",
    ]),
    ("backend", "Backend", "APIs, data, queues", 8, [
        "{service} does one query a row again. I will add the missing prefetch.",
        "The queue of {service} was {n} long at noon and empty ten minutes later. Expected?",
        "I added an idempotency key to {service}. Retries are safe now.",
        "Deleting a guest leaves their drafts behind. Fix is in review.",
        "Timeout of {service} towards the ledger is 30 s. That is a typo, I hope.",
    ]),
    ("infrastructure", "Infrastructure", "Machines, networks, certificates", 6, [
        "Certificate of {service} renews on {day}; the new one is already in place.",
        "Disk of the log host is at {n} %. I am moving the old weeks away.",
        "Restore test of the database took {n} minutes. Notes are in the runbook.",
        "The cache answered in 0.2 ms all week. Best quiet week in a while.",
        "Memory of {service} grows by {n} MB a day. Heap dump taken.",
    ]),
    ("incidents", "Incidents", "One thread an incident, facts first", 6, [
        "{service} answers 502 for about {n} % of calls since 09:40. Looking.",
        "The cache server is unreachable. The site serves from memory, no errors so far.",
        "Root cause found: {service} ran out of connections when {customer} imported everything at once.",
        "All clear. Lasted {n} minutes, nothing was lost. Review on {day}.",
        "Latency of {service} is up by {n} ms. Not an incident yet, watching.",
    ]),
    ("releases", "Releases", "What goes out, and when", 5, [
        "Cutting the release now. In it: {feature}, two fixes for {service}.",
        "Release is out on all hosts. {n} changes, no rollbacks.",
        "{feature} stays behind its flag until {day}.",
        "Hotfix for {service} is out. Only {customer} was affected.",
    ]),
    ("security", "Security", "Reports, reviews, keys", 4, [
        "Rotated the signing key of {service}. The old one is accepted until {day}.",
        "The reporter confirmed the fix for {feature}. I sent our thanks.",
        "Please move to hardware keys before {day}. {n} people still use codes.",
        "Dependency review is done: {n} updates, one of them urgent, all merged.",
    ]),
    ("design", "Design", "How it looks and how it feels", 6, [
        "Three drafts for {feature} are in the documents. I lean to the second.",
        "Five people tried {feature}. All found it, two did not see how to undo.",
        "The empty page of {feature} needs a sentence that says what to do next.",
        "New icons are in. Thinner lines, same shapes.",
    ]),
    ("product", "Product", "What we build next, and why", 7, [
        "{customer} asks for {feature} for the third time. I think they are right.",
        "Numbers of {feature}: {n} % of teams use it every week.",
        "I would rather finish {feature} than start anything new this month.",
        "Notes of the talk with {customer} are in the documents.",
    ]),
    ("support", "Support", "Questions from the people who pay us", 9, [
        "{customer} cannot export since {day}. The job ends after {n} s without a message.",
        "How do I explain the difference between archive and delete for {feature}?",
        "{customer} says thanks: the {feature} saved them an afternoon.",
        "Ticket {n}: signs in, lands on the sign-in page again. Cookie blocked?",
        "Median first answer last week: {n} minutes. Well done.",
    ]),
    ("sales", "Sales", "Who we talk to", 4, [
        "{customer} wants an offer by {day}, {n} seats.",
        "Demo for {customer} went well. They asked twice about the {feature}.",
        "Does the {feature} work without the cloud connection? {customer} needs to know.",
    ]),
    ("marketing", "Marketing", "Words and pictures", 4, [
        "The article about {feature} is online. {n} readers on the first day.",
        "Who can spare half an hour to check facts in the {customer} story?",
        "Booth in {city} is confirmed. We need {n} shirts.",
    ]),
    ("finance", "Finance", "Invoices and plans", 3, [
        "Cloud bill is {n} % lower than last month, mostly {service}.",
        "Invoices of {customer} go to a new address from now on.",
        "Budget for {city} is approved.",
    ]),
    ("people", "People", "Joining, leaving, growing", 4, [
        "Two interviews on {day}. Who can join for the technical part?",
        "Our new colleague in {city} starts on {day}. Desk and laptop are ready.",
        "Feedback round opens next week. It takes {n} minutes, really.",
    ]),
    ("data", "Data", "Questions asked in SQL", 5, [
        "The dashboard of {feature} counted guests twice. Corrected back to {day}.",
        "A full scan of the events takes {n} s. Partitioned it takes 2.",
        "Where does {service} keep the time zone? The report for {city} is off by an hour.",
    ]),
    ("books", "Books", "What we read", 3, [
        "Finished a book about bridges that fell down. Recommended for anybody on call.",
        "Page {n} and still no dragon. Should I go on?",
        "Next one is picked on {day}. Suggestions welcome.",
    ]),
    ("running", "Running", "Slow and together", 3, [
        "{day} 07:30 at the canal. Easy {n} minutes.",
        "Signed up for {city} in spring. Who else?",
        "Knee is fine again. Thanks for asking.",
    ]),
    ("random", "Random", "Everything else", 6, [
        "The cat learned to open the drawer with the cables.",
        "Found a cafe in {city} with a menu in hexadecimal.",
        "My bread has risen for the first time since {day}. I am telling everybody.",
        "Question of the day: is a hot dog a queue or a stack?",
    ]),
]  # fmt: skip

# What is answered in any room, and what only where people work.
REPLIES = [
    "Thanks, that helps.", "Agreed.", "Nice!", "Why not both?", "I can do that.",
    "{name} knows more about that.", "Yes, please.", "Good idea.", "I would wait until {day}.",
    "Count me in.", "+1", "Better than I hoped.", "No hurry.", "Ha, same here.",
    "Ask {name}, who was there.", "Sorry, I only see this now.", "Let us talk about it on {day}.",
    "That made my day.", "Really?", "{name}, what do you say?",
]  # fmt: skip
WORK_REPLIES = [
    *REPLIES, "Looks good to me.", "On it.", "Can you add a link?", "Same here, since this morning.",
    "Works for me now.", "I will check and come back to you.", "Could it be {service}?",
    "Not on my machine, but on staging.", "Yes, and please write it down in the runbook.", "Done.",
    "That was fast, thank you.", "Let me reproduce it first.", "Is there a ticket?",
    "It is in the documents, look for {service}.", "Good catch.", "Sorry, that was me. Reverted.",
    "I am not sure. What does {customer} say?", "We tried that two years ago; happy to tell why it failed.",
    "Took {n} minutes, most of it waiting.",
]  # fmt: skip
OFF_WORK = {"books", "general", "people", "random", "running"}

TAILS = [
    "Details are in the documents.", "Questions to {name}, please.", "More on {day}.",
    "Thanks to {name} for the help.", "I will write it up.", "What do you think?",
    "{name} knows the background.", "Shout if that is in your way.",
]  # fmt: skip

# For each kind of document: titles, and the sentences of its paragraphs.
DOCUMENTS: dict[str, tuple[list[str], list[str]]] = {
    "design": (
        [
            "Design: {feature}",
            "Design: {feature} for {customer}",
            "Design: split {service}",
            "Design: {service} without locks",
        ],
        [
            "People asked for the {feature} because the way around it takes {n} clicks.",
            "We keep the data where it is and add one table; {service} reads it, nobody else does.",
            "The first version does one thing: it shows what changed since {day}.",
            "What we do not do: no settings, no roles, no export. All three can come later without "
            "undoing this.",
            "If {service} is away, the page shows what it knows and says since when.",
            "Cost: about {n} days, half of them for the migration.",
            "Open question: {customer} needs an approval step. {name} talks to them on {day}.",
        ],
    ),
    "guide": (
        [
            "Guide: first week in {city}",
            "Guide: how to test {service}",
            "Guide: writing about {feature}",
            "Guide: on call for {service}",
        ],
        [
            "Read this once from top to bottom; later the headings are enough.",
            "Ask {name} for access on your first day. It takes {n} minutes.",
            "Run the tests of {service} before you change anything: then you know what was broken "
            "before you came.",
            "Small steps. A change that can be read in {n} minutes is read; a larger one is believed.",
            "When you are stuck for half an hour, ask. Nobody minds.",
            "Write down what surprised you. You are new only once.",
        ],
    ),
    "minutes": (
        [
            "Minutes: {room} weekly, {day}",
            "Minutes: talk with {customer}",
            "Minutes: planning of {feature}",
            "Minutes: {service} and {feature}",
        ],
        [
            "Present: {name}, {name} and {n} others.",
            "{feature} is ready except for the empty page; {name} writes the sentence.",
            "{customer} starts on {day} with a team of {n}.",
            "Decided: {service} gets its own database. Reason: the backups.",
            "Not decided: what to do about the old exports. Back on {day}.",
            "The numbers are up by {n} %, mostly because of {feature}.",
        ],
    ),
    "review": (
        [
            "Incident review: {service}, {day}",
            "Incident review: slow {feature}",
            "Incident review: {customer} import",
        ],
        [
            "At 09:40 {service} began to answer slowly; at 09:47 the first person wrote to support.",
            "Nobody lost anything. {n} requests were answered late, none was answered wrongly.",
            "What went well: the page stayed up, the alarm named the right machine, {name} had the "
            "runbook open at once.",
            "What did not: the dashboard showed averages, and an average of a fast and a dead host "
            "looks healthy.",
            "The cause was a limit of {n} connections that had been enough for two years.",
            "We raise the limit, measure how close we are to it, and try the failure on purpose on {day}.",
        ],
    ),
    "runbook": (
        [
            "Runbook: {service}",
            "Runbook: restore {service}",
            "Runbook: turn off {feature}",
            "Runbook: {service} is slow",
        ],
        [
            "Look first, change second. Write down what you see and when.",
            "Is {service} alone, or is everything slow? If everything: see the runbook of the cache.",
            "Restarting is safe: the queue survives it, and callers retry for {n} s.",
            "If memory is above {n} %, take a heap dump before you restart; afterwards it is gone.",
            "The cache may be away. That is not an incident: the site serves from memory and catches "
            "up by itself.",
            "Tell {room} when you start and when you are done. {name} can be called at any hour.",
        ],
    ),
}

BOARD_TITLE = "Notice board"
"""The document that the playground edits."""

BOARD_TEXT = (
    "The playground edits this page to show that what is read through the cache "
    "is never older than the database."
)
