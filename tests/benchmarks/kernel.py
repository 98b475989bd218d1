"""Which kernel a guest has."""

import json
import os

print(json.dumps(os.uname().release))
