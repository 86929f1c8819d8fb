"""Published systems as cards: what they change in a scenario, what they claim, and what of them is modelled."""
