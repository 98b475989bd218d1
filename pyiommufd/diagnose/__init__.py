"""From a refused request to what is behind it: ranked causes, each with evidence and a way out."""
