"""
Forgeries: attempts to make a false claim pass. Each returns a [`ForgeryResult`] that says what was tried, and why it was refused or
what the evidence came to.

```python
>>> from hf_watermark.forgery import search_keys

>>> search_keys(model, key, count=10_000).passed
False
```
"""

from .adversarial import adversarial_triggers
from .counterfeit import counterfeit
from .key_search import search_keys
from .overwriting import overwrite
from .result import ForgeryResult, fresh_key


__all__ = ["ForgeryResult", "adversarial_triggers", "counterfeit", "fresh_key", "overwrite", "search_keys"]
