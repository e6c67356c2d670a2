"""The programming ideas that the demo corpus explains, written for this project."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Concept:
    """One idea of programming, in the sentences that the corpus says about it.

    subject: the name as it stands inside a sentence, with its article ("a loop", "recursion").
    definition: completes "A loop is …".          example: completes "For instance, …".
    likeness: completes "It is like …".           purpose: completes "Programmers use it to …".
    caution: a whole sentence without its full stop.
    """

    subject: str
    definition: str
    example: str
    likeness: str
    purpose: str
    caution: str

    @property
    def title(self) -> str:
        """The subject as the first words of a sentence: "A loop", "Recursion"."""
        return self.subject[0].upper() + self.subject[1:]


CONCEPTS: tuple[Concept, ...] = (
    Concept(
        "recursion",
        "a method where a function calls itself",
        "a factorial function",
        "a box that holds a smaller box",
        "solve a large problem by solving a smaller one first",
        "Every recursion needs a base case, because without one it never stops",
    ),
    Concept(
        "a loop",
        "a way to run the same lines of code many times",
        "counting from one to ten",
        "walking around a track until you are done",
        "repeat work without writing the same code again",
        "Every loop needs a condition that ends it, because without one it never stops",
    ),
    Concept(
        "a function",
        "a named piece of code that takes inputs and returns a result",
        "a function that adds two numbers",
        "a recipe that you can cook again and again",
        "give a name to a step and use it in many places",
        "A good function does one thing, because a small function is easy to test",
    ),
    Concept(
        "a variable",
        "a name that holds a value",
        "a variable that holds the age of a child",
        "a box with a label",
        "remember a value and use it later",
        "A variable needs a clear name, because other people have to read the code",
    ),
    Concept(
        "a list",
        "a row of values that are kept in order",
        "the names of the children in a school",
        "a train with many cars",
        "keep many values together under one name",
        "The first item of a list has the index zero, because the index counts the steps from the start",
    ),
    Concept(
        "a string",
        "a piece of text inside a program",
        "the word hello",
        "a row of letters on a thread",
        "store names and messages",
        "A number inside a string is still text, because a string holds letters and not values",
    ),
    Concept(
        "a stack",
        "a list where the last item added is the first item removed",
        "the undo button of an editor",
        "a pile of plates",
        "go back to the last thing that they did",
        "An empty stack has nothing to remove, because every item was taken from the top",
    ),
    Concept(
        "a queue",
        "a list where the first item added is the first item removed",
        "a printer that prints pages in order",
        "a line of people at a shop",
        "serve every request in the order it came",
        "A queue can grow too long, because items can come faster than they leave",
    ),
    Concept(
        "a tree",
        "a structure where every node has one parent and some children",
        "the folders on a computer",
        "a family with many children",
        "keep data in order and find it fast",
        "A tree works best when it is flat, because a tall tree takes many steps to search",
    ),
    Concept(
        "a graph",
        "a set of nodes that are joined by edges",
        "a map of roads between cities",
        "a net with many knots",
        "find the shortest way from one place to another",
        "A search in a graph has to mark each node, because a circle of edges never stops",
    ),
    Concept(
        "a dictionary",
        "a table that maps each key to a value",
        "a phone book that maps a name to a number",
        "a shelf where every box has a label",
        "find a value fast when they know the key",
        "Every key of a dictionary is there only once, because a new value takes the place of the old one",
    ),
    Concept(
        "a class",
        "a plan that says what its objects hold and what they can do",
        "a class for dogs with a method that barks",
        "a drawing of a house that is not yet built",
        "make many objects that work in the same way",
        "A class needs a clear purpose, because a class that does everything is hard to read",
    ),
    Concept(
        "an object",
        "a thing in memory that holds data and has methods",
        "a button that knows its colour and its label",
        "a house that was built from a drawing",
        "keep data together with the code that works on it",
        "An object can change over time, because its methods can write new values to its data",
    ),
    Concept(
        "a bug",
        "a mistake that makes a program do the wrong thing",
        "a loop that stops one step too early",
        "a hole in a boat",
        "learn where the code is weak",
        "A bug needs a test before it is fixed, because without one it comes back",
    ),
    Concept(
        "a test",
        "a small program that checks another program",
        "a test that adds two and three and expects five",
        "a doctor who looks for a problem",
        "change the code without fear",
        "A test needs a clear answer, because a test that always passes tells you nothing",
    ),
    Concept(
        "a compiler",
        "a program that turns source code into machine code",
        "a compiler that builds a game from many files",
        "a person who turns a book into another language",
        "make their code run fast on a computer",
        "A compiler stops at the first mistake, because it can not guess what you mean",
    ),
    Concept(
        "an algorithm",
        "a list of clear steps that solves a problem",
        "the steps to find the shortest road",
        "a recipe for a cake",
        "solve the same problem for every input",
        "An algorithm has to end, because an answer that never comes is no answer",
    ),
    Concept(
        "sorting",
        "the task of putting items in order",
        "putting the names of children in order",
        "putting books on a shelf",
        "find items fast and show them in order",
        "Sorting a long list takes time, because every item has to find its place",
    ),
    Concept(
        "binary search",
        "a way to find an item by cutting a sorted list in half",
        "looking for a name in a phone book",
        "opening a book in the middle to find a page",
        "find one item among many in a few steps",
        "Binary search needs a sorted list, because it throws away half of the items at each step",
    ),
    Concept(
        "a cache",
        "a small and fast memory that keeps results for later",
        "a browser that keeps the pages you have seen",
        "a desk that holds the books you need today",
        "get the same result again without doing the work again",
        "A cache has to forget old results, because the world changes and memory is small",
    ),
    Concept(
        "a thread",
        "a line of work that runs beside other lines of work",
        "a thread that writes a file while the game runs",
        "a second cook in the kitchen",
        "do two things at the same time",
        "Two threads need a lock, because both can write to the same place at the same time",
    ),
    Concept(
        "a condition",
        "a question that is either true or false",
        "asking if a number is larger than ten",
        "a door that is open or closed",
        "choose which lines of code run next",
        "A condition needs care at the edges, because larger and equal are not the same",
    ),
    Concept(
        "an index",
        "a number that says where an item is in a list",
        "the index zero for the first item",
        "the number of a house in a road",
        "read one item of a list in one step",
        "An index needs to be smaller than the length, because there is no item after the last one",
    ),
    Concept(
        "a comment",
        "a note in the code that the computer does not read",
        "a line that says why a number is there",
        "a note on the door of a room",
        "tell other people why the code is the way it is",
        "A comment needs to say why, because the code says what it does",
    ),
)
