//! A table of values by number. It grows and shrinks in pages, so that no turn ever moves all of
//! it, and what a storm has filled is given back afterwards.

use std::collections::BTreeSet;

/// Entries in one page.
const PAGE: usize = 256;

#[derive(Debug)]
struct Page<T> {
    places: Vec<Place<T>>,
    /// Places of removed values.
    free: Vec<u32>,
    used: usize,
}

#[derive(Debug)]
struct Place<T> {
    generation: u32,
    value: Option<T>,
}

/// What one value takes in the table, in bytes.
pub(crate) const fn place_bytes<T>() -> usize {
    size_of::<Place<T>>()
}

/// See the module's description. Generations are unique over the whole table, so that a page that
/// was given back forgets nothing.
#[derive(Debug)]
pub(crate) struct Slab<T> {
    pages: Vec<Option<Page<T>>>,
    /// Pages with room, absent ones among them. The lowest is filled first, so that the others empty.
    open: BTreeSet<u32>,
    len: usize,
    generation: u32,
}

impl<T> Default for Slab<T> {
    fn default() -> Slab<T> {
        Slab { pages: Vec::new(), open: BTreeSet::new(), len: 0, generation: 0 }
    }
}

fn split(slot: u32) -> (usize, usize) {
    (slot as usize / PAGE, slot as usize % PAGE)
}

impl<T> Slab<T> {
    /// Values in the table.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// All slots in use are below this.
    pub(crate) fn slots(&self) -> u32 {
        u32::try_from(self.pages.len() * PAGE).expect("slots are 32-bit numbers")
    }

    /// Adds a value; returns its slot and generation.
    pub(crate) fn insert(&mut self, value: T) -> (u32, u32) {
        let number = match self.open.first() {
            Some(&number) => number,
            None => {
                let number = u32::try_from(self.pages.len()).expect("slots are 32-bit numbers");
                self.pages.push(None);
                self.open.insert(number);
                number
            }
        };
        self.generation = self.generation.wrapping_add(1);
        let place = Place { generation: self.generation, value: Some(value) };
        let page = self.pages[number as usize].get_or_insert_with(|| Page {
            places: Vec::with_capacity(PAGE),
            free: Vec::new(),
            used: 0,
        });
        let at = match page.free.pop() {
            Some(at) => {
                page.places[at as usize] = place;
                at
            }
            None => {
                page.places.push(place);
                u32::try_from(page.places.len() - 1).expect("a page is small")
            }
        };
        page.used += 1;
        if page.used == PAGE {
            self.open.remove(&number);
        }
        self.len += 1;
        let first = number * u32::try_from(PAGE).expect("a page is small");
        (first + at, self.generation)
    }

    /// Takes a value out.
    pub(crate) fn remove(&mut self, slot: u32) -> Option<T> {
        let (number, at) = split(slot);
        let entry = self.pages.get_mut(number)?;
        let page = entry.as_mut()?;
        let value = page.places.get_mut(at)?.value.take()?;
        page.free.push(u32::try_from(at).expect("a page is small"));
        page.used -= 1;
        // The first one stays: a table with one value that comes and goes is not made anew each time.
        if page.used == 0 && number > 0 {
            *entry = None;
        }
        self.open.insert(u32::try_from(number).expect("slots are 32-bit numbers"));
        self.len -= 1;
        Some(value)
    }

    fn place(&self, slot: u32) -> Option<&Place<T>> {
        let (number, at) = split(slot);
        self.pages.get(number)?.as_ref()?.places.get(at)
    }

    /// The value in a slot.
    pub(crate) fn get(&self, slot: u32) -> Option<&T> {
        self.place(slot)?.value.as_ref()
    }

    /// The value in a slot.
    pub(crate) fn get_mut(&mut self, slot: u32) -> Option<&mut T> {
        let (number, at) = split(slot);
        self.pages.get_mut(number)?.as_mut()?.places.get_mut(at)?.value.as_mut()
    }

    /// The generation of the value in a slot.
    pub(crate) fn generation(&self, slot: u32) -> Option<u32> {
        self.place(slot).filter(|place| place.value.is_some()).map(|place| place.generation)
    }

    /// All values, by slot.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        (0..self.slots()).filter_map(|slot| Some((slot, self.get(slot)?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_used_again_generations_are_not() {
        let mut slab = Slab::default();
        let (a, first) = slab.insert('a');
        assert_eq!(slab.remove(a), Some('a'));
        assert_eq!((slab.get(a), slab.generation(a)), (None, None));
        assert_eq!(slab.remove(a), None);
        let (b, second) = slab.insert('b');
        assert_eq!(a, b);
        assert_ne!(first, second);
    }

    #[test]
    fn what_a_storm_filled_is_given_back() {
        let mut slab = Slab::default();
        let slots: Vec<u32> = (0..10_000).map(|i| slab.insert(i).0).collect();
        assert_eq!(slab.pages.iter().flatten().count(), 10_000_usize.div_ceil(PAGE));
        for &slot in &slots[100..] {
            slab.remove(slot);
        }
        assert_eq!((slab.len(), slab.pages.iter().flatten().count()), (100, 1));
        assert_eq!(slab.insert(7).0 as usize / PAGE, 0, "the lowest page is filled first");
        assert!(slab.iter().all(|(slot, _)| slot < 256));
    }
}
