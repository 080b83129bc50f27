"""The small teachers that ship with the project, the digits they learn, and the program that makes them."""
