"""Word lists that several tasks use."""

WOMEN = ("Mary", "Sarah", "Anna", "Emma", "Alice", "Kate", "Laura", "Emily", "Amy", "Jane", "Lisa", "Lucy", "Rachel", "Jessica",
         "Maria", "Julia", "Linda", "Susan", "Karen", "Nancy", "Helen", "Sophia", "Olivia", "Rose", "Elizabeth", "Barbara",
         "Ruth", "Anne", "Sara", "Maya", "Grace", "Clara", "Diana", "Eva", "Lily", "Martha", "Ellen", "Claire", "Amanda",
         "Jennifer", "Michelle", "Melissa", "Rebecca", "Hannah", "Margaret", "Victoria", "Carol", "Christine", "Catherine",
         "Stephanie")
MEN = ("John", "James", "Tom", "Mark", "Paul", "David", "Michael", "Peter", "Robert", "George", "Daniel", "Kevin", "Brian",
       "Jack", "Adam", "Simon", "Eric", "Steve", "Ryan", "Henry", "Charlie", "William", "Thomas", "Richard", "Joseph",
       "Charles", "Andrew", "Edward", "Jason", "Matthew", "Scott", "Ben", "Sam", "Alex", "Max", "Jacob", "Leo", "Nathan",
       "Martin", "Frank", "Tim", "Oliver", "Lucas", "Ethan", "Noah", "Philip", "Roger", "Arthur", "Albert", "Louis")
NAMES = tuple(name for couple in zip(WOMEN, MEN, strict=True) for name in couple)
KEYS = (*NAMES, "Bob", "Rob", "Chris", "Jackson", "Bill", "Dan", "Jim", "Nick", "Ray", "Ken", "Kim", "Ann", "Carl", "Fred",
        "Luke", "Matt", "Jeff", "Greg", "Marie", "Samuel", "Stephen", "Joan")
WORDS = ("river", "table", "apple", "stone", "paper", "green", "horse", "music", "water", "bread", "chair", "light", "winter",
         "garden", "window", "doctor", "silver", "mountain", "bridge", "letter", "summer", "orange", "tiger", "coffee",
         "market", "island", "forest", "kitchen", "village", "camera", "piano", "rabbit", "castle", "sugar", "hammer", "pocket",
         "yellow", "ocean", "desert", "engine", "basket", "candle", "flower", "butter", "ticket", "mirror", "carpet", "blanket",
         "shoulder", "teacher", "number", "circle", "square", "pencil", "travel", "dinner", "morning", "evening", "kingdom",
         "soldier", "farmer", "cotton", "copper", "leather", "glass", "plastic", "metal", "marble")
