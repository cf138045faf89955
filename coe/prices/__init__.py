"""Price lists: ages, sources and the words with which every dollar names them."""
